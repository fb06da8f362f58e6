"""Which commits of the outbox wait for the disk: all but that of a claim."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery import Celery
from sqlalchemy import create_engine, text

from databases import on_database
from nitro.infrastructure.database import engine, reset, write_connection
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload, bind
from nitro.infrastructure.outbox import claims, pending
from nitro.infrastructure.outbox.claims import Claim, Refusal, claim
from waiting import until

pytestmark = pytest.mark.server

WATCH = """
CREATE TABLE commits (state text, waits text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO commits VALUES (NEW.state, current_setting('synchronous_commit'));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER noted AFTER INSERT OR UPDATE ON nitro_delivery
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
"""
FORGET = "DROP TRIGGER noted ON nitro_delivery; DROP FUNCTION note; DROP TABLE commits"


@pytest.fixture(autouse=True)
def watched(request: pytest.FixtureRequest, app: Celery, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The database notes, at the end of each commit, what it is about and whether it waits."""
    on_database(request, monkeypatch, "postgresql")
    with write_connection() as connection:
        connection.execute(text(WATCH))
    yield
    with write_connection() as connection:
        connection.execute(text(FORGET))


def noted() -> list[tuple[str, ...]]:
    with write_connection() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT state, waits FROM commits"))]


def claimed(emission: str, worker: str = "boot/1-1") -> Claim | Refusal:
    return claim(emission, "shop.a", worker)


def test_only_a_claim_does_not_wait(evt: Event) -> None:
    """Neither what was emitted nor that it was done may be forgotten; that it was begun may."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    emission = emit(evt).id
    run = claimed(emission)
    assert isinstance(run, Claim)
    claims.finish(run)
    assert noted() == [("queued", "on"), ("running", "off"), ("done", "on")]


def test_that_one_has_expired_is_waited_for(evt: Event, app: Celery) -> None:
    """Although it is a claim that finds it out, in one transaction on an engine of the user's own."""
    with own_engine(app):
        on(evt, offload=Offload(expires=0.001), name="shop.a")(lambda sender: None)
        emission = emit(evt).id
        until(lambda: isinstance(claimed(emission), Refusal))
        assert noted() == [("queued", "on"), ("dead", "on")]


def test_a_forgotten_claim_is_made_again(evt: Event) -> None:
    """After a crash of the database its delivery is queued as before; the forgotten run never closes it."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    emission = emit(evt).id
    forgotten = claimed(emission)
    assert isinstance(forgotten, Claim)
    with write_connection() as connection:
        connection.execute(text("UPDATE nitro_delivery SET state = 'queued', attempts = 0, worker = NULL, due_at = 0"))
    with pytest.raises(claims.DeliveryLost):
        claims.finish(forgotten)
    assert pending.requeue_lost(lambda queues: dict.fromkeys(queues, 0)) == 1
    pending.take_due(10)
    run = claimed(emission, "boot/2-1")
    assert isinstance(run, Claim)
    with pytest.raises(claims.DeliveryLost):
        claims.dead_letter(forgotten, "the forgotten run has failed")
    claims.finish(run)
    assert noted()[-1][0] == "done"


@contextmanager
def own_engine(app: Celery) -> Iterator[None]:
    """An engine that a user has made, on the same database."""
    own = create_engine(engine().url)
    bind(app, own)
    yield
    reset()
    own.dispose()
