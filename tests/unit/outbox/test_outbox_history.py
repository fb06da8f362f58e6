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
    """Returns the delivery from the database."""
    (record,) = operations.read_deliveries(operations.has_id_in([task_id]))
    return record


def start_run(task_id: str) -> Claim:
    """Starts a run of the delivery; a waiting delivery is published first."""
    record = entry(task_id)
    if record.state == "waiting":
        pending.take_due(10)
    run = claims.claim(record.emission, record.handler, "boot/1")
    assert isinstance(run, Claim)
    return run


def runs_with_reason(task_id: str) -> list[tuple[int, str]]:
    """Returns number and reason of each run in the history."""
    return [(run.run, run.why) for run in entry(task_id).history]


@pytest.mark.parametrize(
    "message",
    ["try later", 'a "quoted" \\ path', "50 % of {it}", "zwölf €", "it's", ":by :colon", "{}", "tab\there"],
)
def test_a_failed_run_keeps_its_reason(task_id: str, message: str) -> None:
    """A failed run keeps the exception's line, whatever its characters, and the run's begin and end."""
    claims.reschedule(start_run(task_id), 0, TRACEBACK.format(f"ValueError: {message}"))
    (run,) = entry(task_id).history
    assert (run.run, run.why) == (1, f"ValueError: {message}")
    assert run.started is not None
    assert run.started <= run.ended


def test_a_message_of_many_lines_is_one_reason(task_id: str) -> None:
    """The reason of a message with several lines is its first line; characters that a database refuses are escaped."""
    claims.reschedule(start_run(task_id), 0, TRACEBACK.format("ValueError: first\0\nsecond\n\nthird"))
    assert runs_with_reason(task_id) == [(1, "ValueError: first\\0")]


def test_each_run_has_its_place(task_id: str) -> None:
    """Failed, lost and interrupted runs are in the history; the run that closes the delivery is not."""
    claims.reschedule(start_run(task_id), 0, "ValueError: one")
    run = start_run(task_id)
    assert claims.record_losses(claims.is_run_in(run.emission, run.handler, "boot/1"), "its process died: SIGKILL") == 1
    start_run(task_id)
    assert claims.requeue_runs("boot") == 1
    claims.finish(start_run(task_id))
    assert runs_with_reason(task_id) == [
        (1, "ValueError: one"),
        (2, "its process died: SIGKILL"),
        (3, "cut short by a worker that stopped"),
    ]


def test_a_run_that_took_too_long_is_recorded(task_id: str) -> None:
    """A run that exceeded its hard time limit is recorded by the main process."""
    run = start_run(task_id)
    claims.record_timeout(run.emission, run.handler, "boot/1", 0.0, "hard time limit of 1 s exceeded")
    assert runs_with_reason(task_id) == [(1, "hard time limit of 1 s exceeded")]


def test_a_run_that_ends_well_writes_none(task_id: str) -> None:
    """A run that succeeds adds nothing to the history."""
    claims.finish(start_run(task_id))
    assert runs_with_reason(task_id) == []


def test_it_does_not_grow_for_ever(task_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full history keeps its first runs, and its column stays small."""
    monkeypatch.setattr(states, "MAX_HISTORY_CHARACTERS", 300)
    for number in range(12):
        claims.reschedule(start_run(task_id), 0, f"ValueError: {number}")
    runs: list[Any] = runs_with_reason(task_id)
    assert runs[:2] == [(1, "ValueError: 0"), (2, "ValueError: 1")]
    assert len(runs) < 6


def test_a_replayed_delivery_keeps_its_history(task_id: str) -> None:
    """A replay keeps the history and adds the run that made the delivery a dead letter."""
    claims.reschedule(start_run(task_id), 0, "ValueError: one")
    claims.dead_letter(start_run(task_id), "ValueError: two")
    assert operations.replay(operations.has_id_in([task_id])) == 1
    assert runs_with_reason(task_id) == [(1, "ValueError: one"), (2, "ValueError: two")]


@pytest.mark.parametrize("text", ["a\nb", 'a "quoted" \\ path', "\u2028", "x" * 10_000])
def test_a_replayed_delivery_records_its_dead_letter(task_id: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay records begin, end and reason of the last run, even if the history is full."""
    monkeypatch.setattr(states, "MAX_HISTORY_CHARACTERS", 10)
    claims.reschedule(start_run(task_id), 0, "ValueError: one")
    for _ in range(2):
        claims.dead_letter(start_run(task_id), f"ValueError: {text}")
        dead = entry(task_id)
        operations.replay(operations.has_id_in([task_id]))
        last = entry(task_id).history[-1]
        assert (last.run, last.started, last.ended) == (dead.attempts, dead.started, dead.closed)
        assert (last.outcome, last.why) == ("dead", f"ValueError: {text}".splitlines()[0][:300])
    assert [run.outcome for run in entry(task_id).history] == ["retried", "dead", "dead"]


def test_a_dead_letter_after_its_last_run_is_recorded_too(task_id: str) -> None:
    """A delivery that became a dead letter after its last run records the dead letter beside that run."""
    for _ in range(claims.MAX_LOSSES):
        start_run(task_id)
        claims.record_losses(claims.is_run_of_worker("boot"), "its worker died")
    assert entry(task_id).state == "dead"
    operations.replay(operations.has_id_in([task_id]))
    *_, last, dead = entry(task_id).history
    assert (last.run, last.outcome, dead.run, dead.outcome) == (5, "retried", 5, "dead")
    assert (dead.started, dead.why) == (None, "its worker died")


def test_each_of_many_replayed_deliveries_keeps_its_history(
    task_id: str, evt: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead letters that are replayed in several batches each record their run; a done delivery has none to record."""
    monkeypatch.setattr(operations, "READ_BATCH", 2)
    ids = [task_id, *(emit(evt, "ada").offloaded["shop.mail"] for _ in range(4))]
    for number, each in enumerate(ids):
        claims.dead_letter(start_run(each), f"ValueError: {number}")
    done = emit(evt, "ada").offloaded["shop.mail"]
    claims.finish(start_run(done))
    assert operations.replay(operations.has_id_in([*ids, done])) == 6
    assert [runs_with_reason(each) for each in (*ids, done)] == [
        *([(1, f"ValueError: {number}")] for number in range(5)),
        [],
    ]


def is_short(plan: str, index: str, kind: str) -> bool:
    """Whether a plan uses this index.

    PostgreSQL may take any other partial index of an almost empty table.
    """
    if kind == "sqlite":
        return f"ix_nitro_delivery_{index}" in plan
    return "ix_nitro_delivery_" in plan and "nitro_delivery_pkey" not in plan


@pytest.mark.parametrize("states", [frozenset[str](), frozenset({"dead"})])
def test_what_has_happened_is_found_by_indexes(task_id: str, database_kind: str, states: frozenset[str]) -> None:
    """Changes are read by indexes, because `tail` asks for them twice a second."""
    claims.dead_letter(start_run(task_id), "ValueError: one")
    operations.replay(operations.has_id_in([task_id]))
    executed: list[tuple[str, Any]] = []
    event.listen(engine(), "before_cursor_execute", lambda _c, _k, sql, values, *_: executed.append((sql, values)))
    begin = datetime.now(UTC) - timedelta(minutes=1)
    keys, cut = history.changes_since(begin, HistoryFilter(states=states), 10)
    assert ({key[0] for key in keys}, cut) == ({entry(task_id).emission}, False)
    explain = "EXPLAIN QUERY PLAN" if database_kind == "sqlite" else "EXPLAIN"
    with engine().connect() as connection:
        if database_kind == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
        queries = [(sql, values) for sql, values in executed if "nitro_delivery" in sql and "LIMIT" in sql]
        plans = [str(connection.exec_driver_sql(f"{explain} {sql}", values).all()) for sql, values in queries]
    for plan, index in zip(plans, ("open", "closed", "replayed"), strict=True):
        assert is_short(plan, index, database_kind)


@pytest.mark.parametrize(("state", "index"), [("dead", "dead"), ("waiting", "open"), ("running", "open")])
def test_what_is_listed_by_its_state_is_found_by_an_index(database_kind: str, state: str, index: str) -> None:
    """Deliveries in a state are read by an index; the event of each is looked up without a scan of all emissions."""
    executed: list[tuple[str, Any]] = []
    event.listen(engine(), "before_cursor_execute", lambda _c, _k, sql, values, *_: executed.append((sql, values)))
    assert operations.read_deliveries(is_in_states([state]), operations.is_of_event("nothing"), limit=50) == []
    sql, values = executed[-1]
    explain = "EXPLAIN QUERY PLAN" if database_kind == "sqlite" else "EXPLAIN"
    with engine().connect() as connection:
        if database_kind == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
        plan = str(connection.exec_driver_sql(f"{explain} {sql}", values).all())
    assert is_short(plan, index, database_kind)
    assert sql.count("SELECT") == 1
