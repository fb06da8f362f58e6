"""`NITRO_JOURNAL=on`: emissions of a rolled-back transaction are recorded as rolled back: contract section 10."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
from celery import Celery
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.database import engine, transaction
from nitro.infrastructure.events import Emission, Event, emit, emit_async, on
from support import outbox
from support.journals import recorded, rows, writes_held

PATIENCE = 20.0
DELIVERIES = ["at-least-once", "exactly-once", "broker", "at-most-once"]


class Stop(Exception):
    """The error that ends a block."""


class Crate(Entity, table=True):
    """A sender."""

    __tablename__ = "journal_crate"


@pytest.fixture(params=DELIVERIES)
def placed(request: pytest.FixtureRequest, journal_on: object, evt: Event, app: Celery) -> Event:
    """An event with an inline and an offloaded handler, of each delivery in turn; one crate is stored."""
    on(evt, name="shop.stock")(lambda sender, **kwargs: None)
    on(evt, offload={"delivery": request.param}, name="shop.mail")(lambda sender, **kwargs: None)
    Crate(id="c0").save()
    return evt


def by_error(evt: Event) -> Emission:
    """Emits in a block that ends with an exception."""
    with pytest.raises(Stop), transaction():
        emission = emit(evt, "ada")
        raise Stop
    return emission


def by_savepoint(evt: Event) -> Emission:
    """Emits in an inner block that fails, inside an outer one that commits."""
    with transaction():
        Crate(id="c1").save()
        with pytest.raises(Stop), transaction():
            emission = emit(evt, "ada")
            raise Stop
    return emission


def by_outer_savepoint(evt: Event) -> Emission:
    """Emits in an inner block that succeeds, inside an outer one that fails."""
    with transaction(), pytest.raises(Stop), transaction():
        with transaction():
            emission = emit(evt, "ada")
        raise Stop
    return emission


def by_own_session(evt: Event) -> Emission:
    """Emits in the user's own session, which is rolled back."""
    with Session(engine()) as session:
        session.add(crate := Crate(id="c1"))
        session.flush()
        emission = emit(evt, crate)
        session.rollback()
        session.commit()
    return emission


def by_closing(evt: Event) -> Emission:
    """Emits in the user's own session, which is closed without a commit."""
    with Session(engine()) as session:
        session.add(crate := Crate(id="c1"))
        session.flush()
        return emit(evt, crate)


def by_failing_commit(evt: Event) -> Emission:
    """Emits in a block whose commit the database refuses."""
    with pytest.raises(IntegrityError), transaction() as session:
        emission = emit(evt, "ada")
        session.add(Crate(id="c0"))
    return emission


ROLLBACKS = [by_error, by_savepoint, by_outer_savepoint, by_own_session, by_closing, by_failing_commit]


@pytest.mark.parametrize("roll_back", ROLLBACKS)
def test_what_was_rolled_back_is_recorded_once(placed: Event, roll_back: Callable[[Event], Emission]) -> None:
    """A rolled-back emission is recorded once, with its inline handlers done and its offload dropped."""
    emission = roll_back(placed)
    (row,) = recorded()
    assert row.id == emission.id
    assert row.outcomes == {"shop.stock": "done", "shop.mail": "dropped"}
    assert row.story["rolled_back"] is True
    assert outbox.deliveries() == []


@pytest.mark.parametrize("roll_back", ROLLBACKS)
def test_people_are_told(placed: Event, roll_back: Callable[[Event], Emission]) -> None:
    """The history of a rolled-back emission says that it was rolled back."""
    emission = roll_back(placed)
    recorded()
    (tree,) = outbox.emission_trees(emission.id)
    assert tree.rolled_back


def test_what_is_committed_is_recorded_once_and_as_that(placed: Event, journal_on: object) -> None:
    """A committed emission is recorded once, by its delivery or by the journal, and not as rolled back."""
    with transaction():
        emission = emit(placed, "ada")
    assert journal_on.flush(PATIENCE)
    (row,) = recorded()
    assert (row.id, row.story.get("rolled_back", False)) == (emission.id, False)
    assert "dropped" not in row.outcomes.values()


def test_a_rollback_beside_a_commit_is_told_from_it(placed: Event) -> None:
    """An emission in a failed inner block is rolled back; the rest of the transaction is committed."""
    with transaction():
        committed = emit(placed, "ada")
        with pytest.raises(Stop), transaction():
            undone = emit(placed, "bob")
            raise Stop
        later = emit(placed, "eve")
    rolled_back = {row.id: row.story.get("rolled_back", False) for row in recorded(3)}
    assert rolled_back == {committed.id: False, undone.id: True, later.id: False}


def test_what_commits_by_itself_is_not_asked_about_a_later_rollback(placed: Event, journal_on: object) -> None:
    """An emission outside of a transaction is not rolled back by a later block."""
    emission = emit(placed, "ada")
    with pytest.raises(Stop), transaction():
        raise Stop
    assert journal_on.flush(PATIENCE)
    (row,) = recorded()
    assert (row.id, row.story.get("rolled_back", False)) == (emission.id, False)


def test_emit_async_is_recorded_too(placed: Event) -> None:
    """An `emit_async` in a rolled-back transaction is recorded as rolled back."""

    async def rolled_back() -> Emission:
        with pytest.raises(Stop), transaction():
            emission = await emit_async(placed, "ada")
            raise Stop
        return emission

    emission = asyncio.run(rolled_back())
    (row,) = recorded()
    assert (row.id, row.story["rolled_back"]) == (emission.id, True)


@pytest.fixture
def writes_allowed(journal_on: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event that blocks every write of the journal until it is set."""
    with writes_held(monkeypatch) as go:
        yield go


def test_no_rollback_waits_for_the_journal(placed: Event, writes_allowed: threading.Event) -> None:
    """A rollback returns before the journal has written it."""
    emission = by_savepoint(placed)
    assert rows() == []
    writes_allowed.set()
    assert [row.id for row in recorded()] == [emission.id]


def test_without_the_journal_a_rollback_leaves_nothing(evt: Event, app: Celery) -> None:
    """Without the journal a rolled-back emission leaves no row."""
    on(evt, offload=True, name="shop.mail")(lambda sender, **kwargs: None)
    by_error(evt)
    assert rows() == []
