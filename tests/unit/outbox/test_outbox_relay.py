"""Relays publish each due delivery once and lost messages again, and leave queued messages alone: section 7."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from kombu.transport import memory
from sqlalchemy import event, func, select

from nitro.infrastructure.database import engine, write_connection
from nitro.infrastructure.events import Event, Namespace, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox import claims, heartbeat, operations, pending, retention
from nitro.infrastructure.outbox.claims import Claim, Refusal, claim
from nitro.infrastructure.outbox.heartbeat import HeartbeatMonitor, record_heartbeat
from nitro.infrastructure.outbox.relay import Relay
from nitro.infrastructure.outbox.schema import deliveries, emissions, now
from support.databases import KINDS, on_database
from support.waiting import until

Sent = Callable[..., list[Any]]
Work = Callable[..., Any]
EMPTY = 0
LONG = 7
PATIENCE = 20.0


@pytest.fixture
def handled(evt: Event, app: Celery) -> Event:
    """An event with one tracked handler, `shop.a`."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    return evt


def age(seconds: float, **of: Any) -> None:
    """Moves the times of the rows with these values into the past."""
    conditions = [getattr(deliveries.c, name) == value for name, value in of.items()]
    older = {"due_at": deliveries.c.due_at - seconds, "published_at": deliveries.c.published_at - seconds}
    with write_connection() as connection:
        connection.execute(deliveries.update().where(*conditions).values(older))


def lose_all() -> None:
    """Drops all messages of the broker."""
    assert publisher.drain(PATIENCE)
    memory.Channel.queues.clear()


def reporting(ready: int) -> Callable[[Iterable[str]], Mapping[str, int]]:
    """Returns a broker probe that reports so many ready messages for each queue."""
    return lambda queues: dict.fromkeys(queues, ready)


def only() -> operations.DeliveryRecord:
    """Returns the only delivery."""
    (entry,) = operations.read_deliveries()
    return entry


def test_what_was_lost_by_the_broker_leaves_again(handled: Event, app: Celery, sent: Sent) -> None:
    """A message whose queue is empty and which no worker has started is lost, and is published again."""
    emission = emit(handled)
    lose_all()
    age(3600)
    assert Relay(app).step() == 1
    assert [message.id for message in sent()] == list(emission.offloaded.values())
    assert only().publications == 2


def test_nobody_looks_after_a_message_within_its_lease(handled: Event, app: Celery, sent: Sent) -> None:
    """A message is not published again within its lease."""
    emit(handled)
    sent()
    assert Relay(app).step() == 0
    assert only().publications == 1


def test_what_waits_in_a_long_queue_is_not_published_again(handled: Event) -> None:
    """A message in a queue with waiting messages is not published again, however old it is."""
    emit(handled)
    age(3600)
    assert pending.requeue_lost(reporting(LONG)) == 0
    assert only().state == "queued"


def test_what_a_later_one_has_overtaken_is_published_again(handled: Event) -> None:
    """A message is lost if a worker has started a later message of its queue."""
    lost = emit(handled)
    age(60)
    later = emit(handled)
    age(15, emission=lost.id)
    assert isinstance(claim(later.id, "shop.a", "worker/1-1"), Claim)
    assert pending.requeue_lost(reporting(LONG)) == 1
    assert {entry.emission: entry.state for entry in operations.read_deliveries()} == {
        lost.id: "waiting",
        later.id: "running",
    }


def test_another_queue_says_nothing(handled: Event, app: Celery) -> None:
    """A started message of another queue does not make a message lost."""
    other = Namespace().event("other")
    on(other, offload={"queue": "fast"}, name="shop.fast")(lambda sender: None)
    waiting = emit(handled)
    age(60)
    age(15, emission=waiting.id)
    assert isinstance(claim(emit(other).id, "shop.fast", "worker/1-1"), Claim)
    assert pending.requeue_lost(reporting(LONG)) == 0


def test_a_retry_that_waits_says_nothing_of_those_that_wait_with_it(handled: Event, app: Celery) -> None:
    """A retry that was published again does not make older messages of its queue lost."""
    waiting, retried = emit(handled), emit(handled)
    run = claim(retried.id, "shop.a", "worker/1-1")
    assert isinstance(run, Claim)
    claims.reschedule(run, 0.0, "again")
    assert Relay(app).step() == 1
    age(60, emission=waiting.id)
    assert pending.requeue_lost(reporting(LONG)) == 0


def test_the_lease_grows_with_each_publication(handled: Event, app: Celery) -> None:
    """The lease doubles with each publication, up to a minute."""
    emit(handled)
    leases = []
    for _ in range(8):
        entry = only()
        assert entry.due is not None
        assert entry.published is not None
        leases.append(round((entry.due - entry.published).total_seconds()))
        lose_all()
        age(1000)
        assert Relay(app).step() == 1
    assert leases == [10, 20, 40, 60, 60, 60, 60, 60]


def test_what_is_taken_and_never_started_is_dead_in_the_end(handled: Event, app: Celery) -> None:
    """A delivery that was published too often without a start becomes a dead letter."""
    emit(handled)
    with write_connection() as connection:
        connection.execute(deliveries.update().values(publications=pending.MAX_PUBLICATIONS))
    age(3600)
    assert pending.requeue_lost(reporting(EMPTY)) == 0
    assert only().state == "dead"
    assert "never started" in str(only().error)


def test_a_broker_that_is_asked_in_vain_changes_nothing(handled: Event) -> None:
    """A delivery stays queued if the broker cannot be asked about its queue."""

    def fail(queues: Iterable[str]) -> Mapping[str, int]:
        raise ConnectionError("away")

    emit(handled)
    age(3600)
    with pytest.raises(ConnectionError):
        pending.requeue_lost(fail)
    assert only().state == "queued"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_was_set_keeps_nothing_from_leaving(handled: Event, app: Celery, hours: int) -> None:
    """A step of the clock does not delay a lost message: a lease in the far future does not count."""
    emit(handled)
    lose_all()
    age(3600.0 * hours)
    assert Relay(app).step() == 1


def test_a_worker_without_a_beat_is_dead(handled: Event) -> None:
    """A run of a worker without heartbeats is queued again and counted as a loss."""
    emission = emit(handled)
    record_heartbeat("boot", "worker@host")
    assert isinstance(claim(emission.id, "shop.a", "boot/1-1"), Claim)
    observer = HeartbeatMonitor("observer", dead_after=0.05)
    assert observer.release_dead_workers() == 0
    until(observer.release_dead_workers)
    assert (only().state, only().losses) == ("waiting", 1)
    assert "its worker died" in str(only().error)


def test_a_worker_with_a_beat_keeps_its_runs(handled: Event) -> None:
    """A worker with heartbeats keeps its runs, however long a handler takes."""
    emission = emit(handled)
    assert isinstance(claim(emission.id, "shop.a", "boot/1-1"), Claim)
    observer = HeartbeatMonitor("observer", dead_after=0.0)
    for _ in range(5):
        record_heartbeat("boot", "worker@host")
        assert observer.release_dead_workers() == 0
    assert only().state == "running"


def test_a_worker_does_not_declare_itself_dead(handled: Event) -> None:
    """A monitor never declares its own worker dead, because its heartbeats may wait for a handler's lock."""
    emission = emit(handled)
    assert isinstance(claim(emission.id, "shop.a", "boot/1-1"), Claim)
    observer = HeartbeatMonitor("boot", dead_after=0.0)
    assert [observer.release_dead_workers() for _ in range(3)] == [0, 0, 0]
    assert only().state == "running"


def test_an_observer_that_was_kept_from_looking_begins_anew(handled: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor that was delayed starts its observation again, because other workers may have been delayed too."""
    emission = emit(handled)
    assert isinstance(claim(emission.id, "shop.a", "boot/1-1"), Claim)
    observer = HeartbeatMonitor("observer", dead_after=0.0)
    monkeypatch.setattr(heartbeat, "MAX_OBSERVATION_GAP_SECONDS", -1.0)
    assert [observer.release_dead_workers() for _ in range(3)] == [0, 0, 0]
    monkeypatch.setattr(heartbeat, "MAX_OBSERVATION_GAP_SECONDS", 60.0)
    until(observer.release_dead_workers)


def test_a_started_run_begins_the_count_of_publications_anew(handled: Event, app: Celery) -> None:
    """A start resets the count of publications, because a worker has found the message and knows its handler."""
    emission = emit(handled)
    run = claim(emission.id, "shop.a", "boot/1-1")
    assert isinstance(run, Claim)
    claims.reschedule(run, 0.0, "again")
    assert Relay(app).step() == 1
    assert only().publications == 1


def test_a_run_that_loses_its_process_again_and_again_is_dead(handled: Event, app: Celery) -> None:
    """A delivery that loses its process too often becomes a dead letter."""
    emission = emit(handled)
    for number in range(claims.MAX_LOSSES):
        process = f"boot/{number}-"
        assert isinstance(claim(emission.id, "shop.a", f"{process}1"), Claim)
        assert claims.record_losses(claims.is_run_in(emission.id, "shop.a", process), "killed") == 1
        Relay(app).step()
    assert only().state == "dead"
    assert only().attempts == claims.MAX_LOSSES


def test_runs_of_a_stopped_worker_begin_anew(handled: Event, app: Celery) -> None:
    """Runs of a stopped worker are queued again without a loss."""
    emission = emit(handled)
    assert isinstance(claim(emission.id, "shop.a", "boot/1-1"), Claim)
    assert claims.requeue_runs("boot") == 1
    assert Relay(app).step() == 1
    assert (only().state, only().losses) == ("queued", 0)


def test_two_workers_cannot_claim_one_delivery(handled: Event) -> None:
    """The second claim is refused, with the state of the delivery."""
    emission = emit(handled)
    first, second = (claim(emission.id, "shop.a", f"boot/{number}-1") for number in (1, 2))
    assert isinstance(first, Claim)
    assert second == Refusal(state="running")


def test_a_stored_at_most_once_delivery_is_never_sent_twice(evt: Event, app: Celery) -> None:
    """A stored at-most-once message with an unknown publication becomes a dead letter."""
    on(evt, offload={"delivery": "at-most-once"}, name="shop.once")(lambda sender: None)
    publisher._failures, publisher._paused_until = 1, float("inf")
    emit(evt)
    publisher._failures, publisher._paused_until = 0, 0.0
    until(lambda: only().state == "published")
    with write_connection() as connection:
        connection.execute(deliveries.update().values(state="queued", closed_at=None))
    age(3600)
    assert pending.requeue_lost(reporting(EMPTY)) == 0
    assert only().state == "dead"


@pytest.mark.parametrize("kind", KINDS)
def test_four_relays_share_a_backlog(
    request: pytest.FixtureRequest, make_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Four relays publish each row once, and none gets "database is locked"."""
    on_database(request, monkeypatch, kind)
    bind(make_app())
    evt = Namespace().event("many")
    on(evt, offload={"countdown": 3600}, name="shop.a")(lambda sender: None)
    emitted = {emit(evt).offloaded["shop.a"] for _ in range(200)}
    with write_connection() as connection:
        connection.execute(deliveries.delete().where(~deliveries.c.id.in_(emitted)))
        connection.execute(deliveries.update().values(due_at=0.0))
    start = threading.Barrier(4)

    def relay() -> list[str]:
        start.wait()
        taken = []
        while parcels := pending.take_due(7):
            taken += [parcel.task_id for parcel in parcels]
        return taken

    with ThreadPoolExecutor(4) as threads:
        shares = [share.result() for share in [threads.submit(relay) for _ in range(4)]]
    assert sorted(task_id for share in shares for task_id in share) == sorted(emitted)


def test_a_worker_that_does_not_know_the_handler_gives_it_back(
    evt: Event, app: Celery, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivery waits again if the worker lacks its handler, and its error says so."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    emit(evt)
    app._tasks.pop("shop.a")
    work(app)
    requeued = until(lambda: only().state == "waiting" and only())
    assert "unknown to the worker" in str(requeued.error)
    assert requeued.retries == 0, "the handler's own retries are unused"


def test_what_no_worker_knows_is_dead_in_the_end(evt: Event, app: Celery, work: Work) -> None:
    """A delivery that no worker knows becomes a dead letter after ten publications."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    emit(evt)
    with write_connection() as connection:
        connection.execute(deliveries.update().values(publications=10))
    app._tasks.pop("shop.a")
    work(app)
    until(lambda: only().state == "dead")
    assert "unknown to the worker" in str(only().error)


def test_retention_keeps_what_is_open_or_young(handled: Event, app: Celery) -> None:
    """Retention deletes old closed rows with their payloads, and keeps dead letters."""
    open_or_dead = {state: emit(handled).id for state in ("queued", "dead")}
    closed = {state: emit(handled).id for state in ("done", "cancelled")}
    closed_late = emit(handled).id
    with write_connection() as connection:
        for emission, state in [*((e, s) for s, e in (open_or_dead | closed).items()), (closed_late, "done")]:
            closed_at = None if state == "queued" else now() - (0 if emission == closed_late else 3600)
            rows = deliveries.update().where(deliveries.c.emission == emission)
            connection.execute(rows.values(state=state, closed_at=closed_at))
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert retention.purge_deliveries(tomorrow - timedelta(days=2), ("done", "cancelled")) == 0
    aged = datetime.now(UTC) - timedelta(minutes=1)
    assert retention.purge_deliveries(aged, ("done", "cancelled")) == 0
    assert retention.purge_deliveries(tomorrow, ("done", "cancelled")) == 3
    assert {entry.emission for entry in operations.read_deliveries()} == set(open_or_dead.values())
    with engine().connect() as connection:
        assert connection.scalar(select(func.count()).select_from(emissions)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_polling_stays_flat(
    request: pytest.FixtureRequest, make_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each query of a relay reads an index of open rows, whatever the number of closed rows.

    Expiring rows have an index of their own, because otherwise all queued rows would be read.
    """
    on_database(request, monkeypatch, kind)
    executed: list[tuple[str, Any]] = []

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "nitro_delivery" in statement and "SELECT" in statement:
            executed.append((statement, parameters))

    app = bind(make_app())
    Relay(app).step()
    event.listen(engine(), "before_cursor_execute", record)
    Relay(app).step()
    HeartbeatMonitor("observer").release_dead_workers()
    event.remove(engine(), "before_cursor_execute", record)
    with engine().connect() as connection:
        if kind == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
        explain = "EXPLAIN QUERY PLAN" if kind == "sqlite" else "EXPLAIN"
        plans = [str(connection.exec_driver_sql(f"{explain} {sql}", values).all()) for sql, values in executed]
    assert len(plans) == 4
    assert all("ix_nitro_delivery_" in plan for plan in plans), plans
    if kind != "postgresql":  # which takes any index of a few rows
        assert any("ix_nitro_delivery_expiring" in plan for plan in plans), plans


@pytest.mark.parametrize("kind", KINDS)
def test_taking_reads_no_more_than_it_takes(
    request: pytest.FixtureRequest, make_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Taking due deliveries reads them in the order of an index, so that the other due rows are not sorted."""
    on_database(request, monkeypatch, kind)
    Relay(bind(make_app())).step()
    executed: list[tuple[str, Any]] = []
    event.listen(engine(), "before_cursor_execute", lambda _c, _k, sql, values, *_: executed.append((sql, values)))
    pending.take_due(500)
    ((sql, values),) = [(sql, values) for sql, values in executed if "ORDER BY" in sql]
    explain = "EXPLAIN QUERY PLAN" if kind == "sqlite" else "EXPLAIN"
    with engine().connect() as connection:
        if kind == "postgresql":
            for setting in ("enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin"):
                connection.exec_driver_sql(f"SET {setting} = off")
        plan = str(connection.exec_driver_sql(f"{explain} {sql}", values).all())
    assert "ix_nitro_delivery_open" in plan
    assert "Sort" not in plan
    assert "B-TREE" not in plan
