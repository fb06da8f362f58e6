"""Commits of the outbox wait for the disk, except the commit of a claim."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery import Celery
from sqlalchemy import create_engine, text

from nitro.infrastructure.database import engine, reset, write_connection
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload, bind
from nitro.infrastructure.outbox import claims, pending
from nitro.infrastructure.outbox.claims import Claim, Refusal, claim
from support.databases import on_database
from support.waiting import until

pytestmark = pytest.mark.server

RECORD_COMMITS = """
CREATE TABLE commits (state text, waits text);
CREATE FUNCTION record_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO commits VALUES (NEW.state, current_setting('synchronous_commit'));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER record_commit AFTER INSERT OR UPDATE ON nitro_delivery
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION record_commit();
"""
STOP_RECORDING = "DROP TRIGGER record_commit ON nitro_delivery; DROP FUNCTION record_commit; DROP TABLE commits"


@pytest.fixture(autouse=True)
def record_commits(request: pytest.FixtureRequest, app: Celery, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installs a trigger that records the state of each delivery and `synchronous_commit` at each commit."""
    on_database(request, monkeypatch, "postgresql")
    with write_connection() as connection:
        connection.execute(text(RECORD_COMMITS))
    yield
    with write_connection() as connection:
        connection.execute(text(STOP_RECORDING))


def recorded_commits() -> list[tuple[str, ...]]:
    with write_connection() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT state, waits FROM commits"))]


def claim_delivery(emission: str, worker: str = "boot/1-1") -> Claim | Refusal:
    return claim(emission, "shop.a", worker)


def test_only_a_claim_does_not_wait(evt: Event) -> None:
    """The emit and the end of a run wait for the disk; a claim does not."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    emission = emit(evt).id
    run = claim_delivery(emission)
    assert isinstance(run, Claim)
    claims.finish(run)
    assert recorded_commits() == [("queued", "on"), ("running", "off"), ("done", "on")]


def test_an_expiry_waits_for_the_disk(evt: Event, app: Celery) -> None:
    """An expired delivery is closed by a claim whose commit waits, in one transaction on a user's engine."""
    with own_engine(app):
        on(evt, offload=Offload(expires=0.001), name="shop.a")(lambda sender: None)
        emission = emit(evt).id
        until(lambda: isinstance(claim_delivery(emission), Refusal))
        assert recorded_commits() == [("queued", "on"), ("dead", "on")]


def test_a_lost_claim_is_made_again(evt: Event) -> None:
    """A delivery whose claim a database crash lost is queued again; the lost run never closes it."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    emission = emit(evt).id
    lost = claim_delivery(emission)
    assert isinstance(lost, Claim)
    with write_connection() as connection:
        connection.execute(text("UPDATE nitro_delivery SET state = 'queued', attempts = 0, worker = NULL, due_at = 0"))
    with pytest.raises(claims.DeliveryLost):
        claims.finish(lost)
    assert pending.requeue_lost(lambda queues: dict.fromkeys(queues, 0)) == 1
    pending.take_due(10)
    run = claim_delivery(emission, "boot/2-1")
    assert isinstance(run, Claim)
    with pytest.raises(claims.DeliveryLost):
        claims.dead_letter(lost, "the lost run has failed")
    claims.finish(run)
    assert recorded_commits()[-1][0] == "done"


@contextmanager
def own_engine(app: Celery) -> Iterator[None]:
    """Binds an engine of the user's own, on the same database."""
    own = create_engine(engine().url)
    bind(app, own)
    yield
    reset()
    own.dispose()
