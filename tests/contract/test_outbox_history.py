"""The history of a delivery: its runs that did not close it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import event

from nitro.infrastructure.database import engine
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.outbox import claims, history, operations, pending, states
from nitro.infrastructure.outbox.claims import Claim
from nitro.infrastructure.outbox.history import HistoryFilter
from nitro.infrastructure.outbox.operations import DeliveryRecord
from nitro.infrastructure.outbox.states import is_in_states

TRACEBACK = 'Traceback (most recent call last):\n  File "mail.py", line 3\n{}'


@pytest.fixture
def task_id(database_kind: str, evt: Event, app: Celery) -> str:
    """A delivery, on each database in turn."""
    on(evt, offload=True, name="shop.mail")(lambda sender: None)
    return emit(evt, "ada").offloaded["shop.mail"]


def entry(task_id: str) -> DeliveryRecord:
    """The delivery as it stands."""
    (found,) = operations.read_deliveries(operations.has_id_in([task_id]))
    return found


def begun(task_id: str) -> Claim:
    """A run of it, published anew where it waits."""
    mine = entry(task_id)
    if mine.state == "waiting":
        pending.take_due(10)
    started = claims.claim(mine.emission, mine.handler, "boot/1")
    assert isinstance(started, Claim)
    return started


def told(task_id: str) -> list[tuple[int, str]]:
    """Number and reason of each run in its history."""
    return [(run.run, run.why) for run in entry(task_id).history]


@pytest.mark.parametrize(
    "message",
    ["try later", 'a "quoted" \\ path', "50 % of {it}", "zwölf €", "it's", ":by :colon", "{}", "tab\there"],
)
def test_a_failed_run_keeps_its_reason(task_id: str, message: str) -> None:
    """The exception's own line, whatever is in it, with when the run began and ended."""
    claims.reschedule(begun(task_id), 0, TRACEBACK.format(f"ValueError: {message}"))
    (run,) = entry(task_id).history
    assert (run.run, run.why) == (1, f"ValueError: {message}")
    assert run.started is not None
    assert run.started <= run.ended


def test_a_message_of_many_lines_is_one_reason(task_id: str) -> None:
    """Its first line; what a database cannot keep is escaped."""
    claims.reschedule(begun(task_id), 0, TRACEBACK.format("ValueError: first\0\nsecond\n\nthird"))
    assert told(task_id) == [(1, "ValueError: first\\0")]


def test_each_run_has_its_place(task_id: str) -> None:
    """Failed ones, one whose process died, and one that was cut short; the last one, which closes it, is not there."""
    claims.reschedule(begun(task_id), 0, "ValueError: one")
    run = begun(task_id)
    assert claims.record_losses(claims.is_run_in(run.emission, run.handler, "boot/1"), "its process died: SIGKILL") == 1
    begun(task_id)
    assert claims.requeue_runs("boot") == 1
    claims.finish(begun(task_id))
    assert told(task_id) == [
        (1, "ValueError: one"),
        (2, "its process died: SIGKILL"),
        (3, "cut short by a worker that stopped"),
    ]


def test_a_run_that_took_too_long_is_told(task_id: str) -> None:
    """Of a hard time limit the main process writes."""
    run = begun(task_id)
    claims.record_timeout(run.emission, run.handler, "boot/1", 0.0, "hard time limit of 1 s exceeded")
    assert told(task_id) == [(1, "hard time limit of 1 s exceeded")]


def test_a_run_that_ends_well_writes_none(task_id: str) -> None:
    """Nearly all do, and pay nothing for those that do not."""
    claims.finish(begun(task_id))
    assert told(task_id) == []


def test_it_does_not_grow_for_ever(task_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first runs are kept, and the column stays small."""
    monkeypatch.setattr(states, "MAX_HISTORY_CHARACTERS", 300)
    for number in range(12):
        claims.reschedule(begun(task_id), 0, f"ValueError: {number}")
    kept: list[Any] = told(task_id)
    assert kept[:2] == [(1, "ValueError: 0"), (2, "ValueError: 1")]
    assert len(kept) < 6


def test_a_replayed_one_remembers(task_id: str) -> None:
    """Why it died the first time is not forgotten."""
    claims.reschedule(begun(task_id), 0, "ValueError: one")
    claims.dead_letter(begun(task_id), "ValueError: two")
    assert operations.replay(operations.has_id_in([task_id])) == 1
    assert told(task_id) == [(1, "ValueError: one"), (2, "ValueError: two")]


@pytest.mark.parametrize("text", ["a\nb", 'a "quoted" \\ path', "\u2028", "x" * 10_000])
def test_a_replayed_one_remembers_its_death(task_id: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its last run began and ended, and the line that said why; however often, and however full its history is."""
    monkeypatch.setattr(states, "MAX_HISTORY_CHARACTERS", 10)
    claims.reschedule(begun(task_id), 0, "ValueError: one")
    for _ in range(2):
        claims.dead_letter(begun(task_id), f"ValueError: {text}")
        dead = entry(task_id)
        operations.replay(operations.has_id_in([task_id]))
        death = entry(task_id).history[-1]
        assert (death.run, death.started, death.ended) == (dead.attempts, dead.started, dead.closed)
        assert (death.outcome, death.why) == ("dead", f"ValueError: {text}".splitlines()[0][:300])
    assert [run.outcome for run in entry(task_id).history] == ["retried", "dead", "dead"]


def test_what_died_after_its_last_run_is_told_of_too(task_id: str) -> None:
    """That run is in the history already, and is not told of as if it had been another one."""
    for _ in range(claims.MAX_LOSSES):
        begun(task_id)
        claims.record_losses(claims.is_run_of_worker("boot"), "its worker died")
    assert entry(task_id).state == "dead"
    operations.replay(operations.has_id_in([task_id]))
    *_, last, death = entry(task_id).history
    assert (last.run, last.outcome, death.run, death.outcome) == (5, "retried", 5, "dead")
    assert (death.started, death.why) == (None, "its worker died")


def test_each_of_many_that_are_replayed_remembers(task_id: str, evt: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they are more than are read at a time; what was done has nothing to remember."""
    monkeypatch.setattr(operations, "READ_BATCH", 2)
    ids = [task_id, *(emit(evt, "ada").offloaded["shop.mail"] for _ in range(4))]
    for number, each in enumerate(ids):
        claims.dead_letter(begun(each), f"ValueError: {number}")
    done = emit(evt, "ada").offloaded["shop.mail"]
    claims.finish(begun(done))
    assert operations.replay(operations.has_id_in([*ids, done])) == 6
    assert [told(each) for each in (*ids, done)] == [*([(1, f"ValueError: {number}")] for number in range(5)), []]


def is_short(plan: str, index: str, kind: str) -> bool:
    """Whether a plan uses this index; of an almost empty table PostgreSQL may take any other partial one."""
    if kind == "sqlite":
        return f"ix_nitro_delivery_{index}" in plan
    return "ix_nitro_delivery_" in plan and "nitro_delivery_pkey" not in plan


@pytest.mark.parametrize("states", [frozenset[str](), frozenset({"dead"})])
def test_what_has_happened_is_found_by_indexes(task_id: str, database_kind: str, states: frozenset[str]) -> None:
    """However many deliveries there are: who follows what happens asks twice a second."""
    claims.dead_letter(begun(task_id), "ValueError: one")
    operations.replay(operations.has_id_in([task_id]))
    asked: list[tuple[str, Any]] = []
    event.listen(engine(), "before_cursor_execute", lambda _c, _k, sql, values, *_: asked.append((sql, values)))
    begin = datetime.now(UTC) - timedelta(minutes=1)
    keys, cut = history.changes_since(begin, HistoryFilter(states=states), 10)
    assert ({key[0] for key in keys}, cut) == ({entry(task_id).emission}, False)
    explain = "EXPLAIN QUERY PLAN" if database_kind == "sqlite" else "EXPLAIN"
    with engine().connect() as connection:
        if database_kind == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
        questions = [(sql, values) for sql, values in asked if "nitro_delivery" in sql and "LIMIT" in sql]
        plans = [str(connection.exec_driver_sql(f"{explain} {sql}", values).all()) for sql, values in questions]
    for plan, index in zip(plans, ("open", "closed", "replayed"), strict=True):
        assert is_short(plan, index, database_kind)


@pytest.mark.parametrize(("state", "index"), [("dead", "dead"), ("waiting", "open"), ("running", "open")])
def test_what_is_listed_by_its_state_is_found_by_an_index(database_kind: str, state: str, index: str) -> None:
    """However many deliveries are done; those of one event are not sought among all emissions."""
    asked: list[tuple[str, Any]] = []
    event.listen(engine(), "before_cursor_execute", lambda _c, _k, sql, values, *_: asked.append((sql, values)))
    assert operations.read_deliveries(is_in_states([state]), operations.is_of_event("nothing"), limit=50) == []
    sql, values = asked[-1]
    explain = "EXPLAIN QUERY PLAN" if database_kind == "sqlite" else "EXPLAIN"
    with engine().connect() as connection:
        if database_kind == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
        plan = str(connection.exec_driver_sql(f"{explain} {sql}", values).all())
    assert is_short(plan, index, database_kind)
    assert sql.count("SELECT") == 1
