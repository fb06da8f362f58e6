"""`NITRO_JOURNAL=on`: what is emitted in a transaction that is rolled back is recorded as that: contract section 10."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from journals import recorded, rows
from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.database import engine, transaction
from nitro.infrastructure.events import Emission, Event, emit, emit_async, on
from nitro.infrastructure.outbox import history, journal, operations

PATIENCE = 20.0
DELIVERIES = ["at-least-once", "exactly-once", "broker", "at-most-once"]


class Stop(Exception):
    """What ends a block."""


class Crate(Entity, table=True):
    """Something to emit about."""

    __tablename__ = "journal_crate"


@pytest.fixture(params=DELIVERIES)
def heard(request: pytest.FixtureRequest, journal_on: object, evt: Event, app: Celery) -> Event:
    """An event with an inline and an offloaded handler, of each delivery in turn; somebody is stored already."""
    on(evt, name="shop.stock")(lambda sender, **kwargs: None)
    on(evt, offload={"delivery": request.param}, name="shop.mail")(lambda sender, **kwargs: None)
    Crate(id="c0").save()
    return evt


def by_error(evt: Event) -> Emission:
    """An exception leaves the block after the emit."""
    with pytest.raises(Stop), transaction():
        emission = emit(evt, "ada")
        raise Stop
    return emission


def by_savepoint(evt: Event) -> Emission:
    """An inner block fails, and the outer one goes on."""
    with transaction():
        Crate(id="c1").save()
        with pytest.raises(Stop), transaction():
            emission = emit(evt, "ada")
            raise Stop
    return emission


def by_outer_savepoint(evt: Event) -> Emission:
    """A block fails after one in it has ended well."""
    with transaction(), pytest.raises(Stop), transaction():
        with transaction():
            emission = emit(evt, "ada")
        raise Stop
    return emission


def by_own_session(evt: Event) -> Emission:
    """The user's own session is rolled back."""
    with Session(engine()) as session:
        session.add(crate := Crate(id="c1"))
        session.flush()
        emission = emit(evt, crate)
        session.rollback()
        session.commit()
    return emission


def by_closing(evt: Event) -> Emission:
    """The user's own session is closed without a commit."""
    with Session(engine()) as session:
        session.add(crate := Crate(id="c1"))
        session.flush()
        return emit(evt, crate)


def by_failing_commit(evt: Event) -> Emission:
    """The commit is refused by the database."""
    with pytest.raises(IntegrityError), transaction() as session:
        emission = emit(evt, "ada")
        session.add(Crate(id="c0"))
    return emission


WAYS = [by_error, by_savepoint, by_outer_savepoint, by_own_session, by_closing, by_failing_commit]


@pytest.mark.parametrize("way", WAYS)
def test_what_was_rolled_back_is_recorded_once(heard: Event, way: Callable[[Event], Emission]) -> None:
    """With its inline handlers, and as never queued."""
    emission = way(heard)
    (found,) = recorded()
    assert found.id == emission.id
    assert found.outcomes == {"shop.stock": "done", "shop.mail": "dropped"}
    assert found.story["rolled_back"] is True
    assert operations.read_deliveries() == []


@pytest.mark.parametrize("way", WAYS)
def test_people_are_told(heard: Event, way: Callable[[Event], Emission]) -> None:
    """Whoever asks what became of the emission."""
    emission = way(heard)
    recorded()
    (told,) = history.trees_by_id(emission.id)
    assert told.rolled_back


def test_what_is_committed_is_recorded_once_and_as_that(heard: Event, journal_on: journal.Journal) -> None:
    """By the row of its delivery, or by the journal."""
    with transaction():
        emission = emit(heard, "ada")
    assert journal_on.flush(PATIENCE)
    (found,) = recorded()
    assert (found.id, found.story.get("rolled_back", False)) == (emission.id, False)
    assert "dropped" not in found.outcomes.values()


def test_a_rollback_beside_a_commit_is_told_from_it(heard: Event) -> None:
    """A part of a transaction, and the rest."""
    with transaction():
        kept = emit(heard, "ada")
        with pytest.raises(Stop), transaction():
            undone = emit(heard, "bob")
            raise Stop
        later = emit(heard, "eve")
    found = {each.id: each.story.get("rolled_back", False) for each in recorded(3)}
    assert found == {kept.id: False, undone.id: True, later.id: False}


def test_what_commits_by_itself_is_not_asked_about_a_later_rollback(heard: Event, journal_on: journal.Journal) -> None:
    """It had no transaction to wait for."""
    emission = emit(heard, "ada")
    with pytest.raises(Stop), transaction():
        raise Stop
    assert journal_on.flush(PATIENCE)
    (found,) = recorded()
    assert (found.id, found.story.get("rolled_back", False)) == (emission.id, False)


def test_emit_async_is_recorded_too(heard: Event) -> None:
    """Of a transaction around it."""

    async def rolled_back() -> Emission:
        with pytest.raises(Stop), transaction():
            emission = await emit_async(heard, "ada")
            raise Stop
        return emission

    emission = asyncio.run(rolled_back())
    (found,) = recorded()
    assert (found.id, found.story["rolled_back"]) == (emission.id, True)


@pytest.fixture
def held(journal_on: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A database that takes nothing from the journal until this is set."""
    go, insert = threading.Event(), journal._insert_entries

    def wait(notes: list[Any]) -> None:
        assert go.wait(PATIENCE)
        insert(notes)

    monkeypatch.setattr(journal, "_insert_entries", wait)
    yield go
    go.set()
    assert journal_on.flush(PATIENCE)


def test_no_rollback_waits_for_the_journal(heard: Event, held: threading.Event) -> None:
    """It is noted when the journal comes to it."""
    emission = by_savepoint(heard)
    assert rows() == []
    held.set()
    assert [each.id for each in recorded()] == [emission.id]


def test_without_the_journal_a_rollback_leaves_nothing(evt: Event, app: Celery) -> None:
    """As before."""
    on(evt, offload=True, name="shop.mail")(lambda sender, **kwargs: None)
    by_error(evt)
    assert rows() == []
