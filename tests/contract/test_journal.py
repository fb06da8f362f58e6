"""`NITRO_JOURNAL=on`: emissions without deliveries are recorded, and no emit waits for it: contract section 10."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import StaticPool, create_engine
from sqlalchemy import event as sqlalchemy_event

from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.database import engine, reset, transaction, use_engine
from nitro.infrastructure.events import Event, Namespace, emit, on
from nitro.infrastructure.offload import bind
from support import faults, journals, outbox
from support.journals import only, recorded, rows
from support.waiting import until

on_each_database = pytest.mark.usefixtures("database_kind")
AWAY = "postgresql://postgres@127.0.0.1:9/away"


class Bottle(Entity, table=True):
    """A sender."""

    __tablename__ = "journal_bottle"


class Shy(Entity, table=True):
    """A sender with a field that cannot be shown."""

    __tablename__ = "journal_shy"
    __nitro_show__ = ("missing",)


@pytest.fixture
def writes_allowed(journal_on: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event that blocks every write of the journal until it is set."""
    with journals.writes_held(monkeypatch) as go:
        yield go


def with_handler(evt: Event) -> Event:
    """Connects an inline handler and returns the event."""
    on(evt, name="shop.stock")(lambda sender, **kwargs: None)
    return evt


@on_each_database
def test_an_emission_without_offloads_is_recorded(journal_on: object, evt: Event) -> None:
    """An emission without offloads is recorded by its id, as a root without a parent."""
    emission = emit(with_handler(evt), Bottle(id="b1"))
    row = only()
    assert (row.id, row.event, row.sender) == (emission.id, "order.placed", "Bottle:b1")
    assert (row.root, row.parent, row.story["caused_in"]) == (None, None, None)
    assert row.outcomes == {"shop.stock": "done"}


def test_an_emission_that_nobody_hears_is_recorded(journal_on: object, evt: Event) -> None:
    """An emission without handlers is recorded."""
    emission = emit(evt, "ada")
    assert (only().id, only().outcomes) == (emission.id, {})


def test_without_the_journal_nothing_is_recorded(evt: Event, app: Celery) -> None:
    """Without the journal only emissions with a tracked delivery are recorded."""
    emit(with_handler(evt), "ada")
    on(evt, name="shop.mail", offload=True)(lambda sender: None)
    tracked = emit(evt, "bob")
    journals.flush()
    assert [row.id for row in rows()] == [tracked.id]


def test_an_emission_with_tracked_deliveries_is_recorded_once(journal_on: object, evt: Event, app: Celery) -> None:
    """An emission with tracked deliveries is recorded once, in the row that they need anyway."""
    on(with_handler(evt), name="shop.mail", offload=True)(lambda sender: None)
    emission = emit(evt, "ada")
    assert not journals.has_unwritten()
    assert only().id == emission.id


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_what_celery_runs_at_once_is_recorded(
    journal_on: object, evt: Event, make_app: Callable[..., Celery], delivery: str
) -> None:
    """With `task_always_eager` nothing is tracked, and the journal records the emission."""
    bind(make_app(task_always_eager=True))
    further = type(evt)("further")
    on(further, name="shop.count")(lambda sender: None)
    on(evt, name="shop.mail", offload={"delivery": delivery})(lambda sender: emit(further, sender) and None)
    emission = emit(evt, "ada")
    first, second = recorded(2)
    assert (first.id, first.outcomes) == (emission.id, {"shop.mail": "queued"})
    assert first.turn("shop.mail")["delivery"] == delivery
    assert (second.parent, second.outcomes) == (emission.id, {"shop.count": "done"})


def test_what_celery_runs_at_once_and_raises_is_recorded(
    journal_on: object, evt: Event, make_app: Callable[..., Celery]
) -> None:
    """With `task_eager_propagates` an emission whose handler raises is recorded with the error."""
    bind(make_app(task_always_eager=True, task_eager_propagates=True))

    @on(evt, name="shop.mail", offload={"max_retries": 0})
    def mail(sender: str) -> None:
        raise LookupError("no address")

    with pytest.raises(LookupError):
        emit(evt, "ada")
    assert (only().story["error"], only().outcomes) == ("LookupError: no address", {"shop.mail": "queued"})


def test_only_an_emission_with_offloads_is_recorded_as_rolled_back(journal_on: object, evt: Event, app: Celery) -> None:
    """A rollback marks an emission with offloads; an emission with only inline handlers stays unmarked."""
    on(evt, name="shop.mail", offload=True)(lambda sender: None)
    inline = with_handler(Namespace().event("seen"))
    with pytest.raises(ZeroDivisionError), transaction():
        placed = emit(evt, "ada")
        seen = emit(inline, "ada")
        raise ZeroDivisionError
    rolled_back = {row.id: row.story.get("rolled_back", False) for row in recorded(2)}
    assert rolled_back == {placed.id: True, seen.id: False}


@on_each_database
def test_a_tracked_emissions_story_commits_with_the_callers_data(evt: Event, app: Celery) -> None:
    """The story of a tracked emission is visible to other connections after the caller's commit only."""
    on(with_handler(evt), name="shop.mail", offload=True)(lambda sender: None)
    with transaction():
        emit(evt, "ada")
        assert rows_of_another_connection() == []
    assert only().outcomes == {"shop.stock": "done"}


def test_a_stored_untracked_delivery_has_a_story_too(journal_on: object, evt: Event, app: Celery) -> None:
    """An emission whose untracked delivery waits in the outbox, with its broker away, is recorded."""
    on(with_handler(evt), name="shop.mail", offload={"delivery": "broker"})(lambda sender: None)
    faults.set_reachable(False)
    emit(evt, "ada")
    journals.flush()
    assert only().outcomes == {"shop.stock": "done", "shop.mail": "queued"}
    assert [entry.state for entry in outbox.deliveries()] == ["waiting"]


def test_an_emit_makes_no_query(journal_on: object, evt: Event, app: Celery) -> None:
    """The journal writes on a thread of its own; the emit makes no query."""
    with_handler(evt)
    threads: set[int] = set()
    sqlalchemy_event.listen(engine(), "before_cursor_execute", lambda *_: threads.add(threading.get_ident()))
    emission = emit(evt, "ada")
    on_this_thread = threading.get_ident() in threads
    journals.flush()
    assert (on_this_thread, len(threads)) == (False, 1)
    assert only().id == emission.id


def test_an_emit_does_not_wait_for_the_database(writes_allowed: threading.Event, evt: Event) -> None:
    """An emit returns before its emission is written."""
    emissions = [emit(with_handler(evt), "ada") for _ in range(3)]
    assert rows() == []
    writes_allowed.set()
    assert [row.id for row in recorded(3)] == [emission.id for emission in emissions]


def test_a_database_that_is_away_is_waited_for(
    journal_on: object, evt: Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No emit fails while the database is away; emissions are written later, and the log tells of the outage."""
    with monkeypatch.context() as patch:
        patch.setenv("NITRO_DB_URL", AWAY)
        reset()
        emissions = [emit(with_handler(evt), "ada") for _ in range(3)]
        until(lambda: "nitro-journal failed and retries" in caplog.text)
    reset()
    assert [row.id for row in recorded(3)] == [emission.id for emission in emissions]
    until(lambda: "nitro-journal works again" in caplog.text)
    assert [record.levelname for record in caplog.records if record.name == "nitro.outbox"] == ["WARNING"] * 2


def test_an_engine_in_memory_is_left_to_the_program(
    journal_on: object,
    evt: Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The journal does not write to an engine with one connection, where it would commit the program's open work."""
    use_engine(create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}))
    journals.forget_warnings(monkeypatch)
    Bottle.init_db()
    for _ in range(2):
        with pytest.raises(InterruptedError), transaction():
            Bottle(id="b1").save()
            emit(with_handler(evt), "ada")
            journals.flush()
            raise InterruptedError
    assert Bottle.all() == []
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["the journal records nothing"]


def test_what_is_too_much_is_dropped_aloud(
    writes_allowed: threading.Event, evt: Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Emissions over the limit are dropped while the database is away, and the log counts them."""
    journals.set_limits(monkeypatch, unwritten=3)
    emissions = [emit(with_handler(evt), "ada") for _ in range(5)]
    writes_allowed.set()
    until(lambda: "2 emissions are not in the journal" in caplog.text)
    assert [row.id for row in rows()] == [emission.id for emission in emissions[:3]]


def test_more_than_fits_at_once_is_written_in_turns(
    writes_allowed: threading.Event, evt: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emissions that exceed one batch are written in several, without a pause between them."""
    journals.set_limits(monkeypatch, batch=2)
    emissions = [emit(with_handler(evt), "ada") for _ in range(7)]
    writes_allowed.set()
    assert [row.id for row in recorded(7)] == [emission.id for emission in emissions]


def test_an_id_tells_when_its_emission_began(journal_on: object, evt: Event) -> None:
    """The time in an id is the begin of its emission, not its end or its write."""
    inside: list[datetime] = []

    @on(evt, name="shop.stock")
    def stock(sender: str) -> None:
        inside.append(datetime.now(UTC))
        until(lambda: datetime.now(UTC) - inside[0] > timedelta(milliseconds=5))

    emit(evt, "ada")
    assert only().began <= inside[0]


@on_each_database
def test_any_text_can_be_recorded(journal_on: object) -> None:
    """Text that a database cannot store is escaped, and keeps no later emission from being written."""
    odd = Namespace().event("e\1%s" + "x" * 500)

    @on(odd, name="shop.ö\1%(x)s", on_error="log")
    def failing(sender: object) -> None:
        raise LookupError("a NUL \0, half a pair \ud800, 100 %, 'quotes' \"too\" \\ and\nlines")

    emit(odd, Bottle(id="b\0\ud800"))
    emit(with_handler(Namespace().event("next")), "ada")
    first, second = recorded(2)
    assert first.event == odd.name
    assert first.sender == "Bottle:b\\0\\ud800"
    (turn,) = first.story["handlers"]
    assert turn["handler"] == "shop.ö\1%(x)s"
    assert turn["why"] == "LookupError: a NUL \0, half a pair \ud800, 100 %, 'quotes' \"too\" \\ and\nlines"
    assert second.event == "next"


def test_a_sender_that_cannot_be_shown_is_recorded(journal_on: object, evt: Event) -> None:
    """A sender with a field that cannot be shown is recorded with the error of that field."""
    emission = emit(with_handler(evt), Shy(id="s1"))
    assert (only().id, only().sender) == (emission.id, "Shy:s1 missing=<AttributeError>")


def test_what_cannot_be_noted_fails_no_emit(
    journal_on: object, evt: Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An emission that cannot be recorded fails no emit, and the log names it."""
    with monkeypatch.context() as patch:
        journals.fail_recording(patch)
        emission = emit(with_handler(evt), "ada")
    assert f"emission {emission.id} is not in the journal" in caplog.text
    following = emit(evt, "ada")
    assert only().id == following.id


def rows_of_another_connection() -> list[Any]:
    """Returns the emissions that another connection sees now."""
    with engine().connect() as connection:
        return list(connection.exec_driver_sql("SELECT id FROM nitro_emission"))
