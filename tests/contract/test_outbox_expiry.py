"""A delivery that expires becomes a dead letter in time, wherever its message is: contract section 7."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import Retry

from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from support import faults, outbox
from support.broker import drain_publisher
from support.databases import KINDS, on_database
from support.waiting import until

Sent = Callable[..., list[Any]]
Work = Callable[..., Any]
HANDLER = "shop.a"
SOON = timedelta(hours=1)
ZONES = ["Asia/Tokyo", "America/New_York", "UTC"]


class Expiring(Task):
    """A task class whose messages expire."""

    abstract = True
    expires = 0.001


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The time zone of this process."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def handled(evt: Event, **offload: Any) -> Event:
    """Connects an offloaded handler with these options and returns the event."""
    on(evt, offload=offload or True, name=HANDLER)(lambda sender: None)
    return evt


def naive(moment: datetime) -> datetime:
    """Returns the moment in UTC without an offset."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def only(state: str | None = None) -> outbox.DeliveryRecord:
    """Waits until the only delivery is in a state, and returns it."""
    return until(lambda: next(iter(records), None) if (records := in_state(state)) else None)


def in_state(state: str | None) -> list[outbox.DeliveryRecord]:
    """Returns the deliveries in a state."""
    return [entry for entry in outbox.deliveries() if state in (None, entry.state)]


def expires_at() -> float:
    """Returns the time at which the only delivery expires."""
    (row,) = outbox.delivery_rows()
    return float(row.expires_at or 0.0)


@pytest.mark.parametrize("shape", [naive, lambda moment: moment, lambda m: m.astimezone(timezone(timedelta(hours=9)))])
def test_a_time_is_read_as_celery_reads_it(
    zone: str, evt: Event, app: Celery, shape: Callable[[datetime], datetime]
) -> None:
    """An `expires` without an offset is UTC, whatever the time zone of the process."""
    moment = datetime.now(UTC) + SOON
    emit(handled(evt, expires=shape(moment)))
    assert expires_at() == pytest.approx(moment.timestamp(), abs=0.01)
    outbox.start_run(outbox.delivery().emission, HANDLER)


@pytest.mark.parametrize("promise", ["broker", "at-most-once"])
def test_the_message_says_the_same_as_the_row(zone: str, evt: Event, app: Celery, sent: Sent, promise: str) -> None:
    """An untracked message carries the same expiry, whether it is sent at once or after an outage."""
    moment = datetime.now(UTC) + SOON
    emit(handled(evt, expires=naive(moment), delivery=promise))
    faults.set_reachable(False)
    emit(evt)
    faults.set_reachable(True)
    only("published")
    expiries = [datetime.fromisoformat(message.headers["expires"]) for message in sent()]
    assert [abs(each - moment) < timedelta(seconds=0.01) for each in expiries] == [True, True]


def test_a_call_of_the_task_says_the_same(zone: str, evt: Event, app: Celery, sent: Sent) -> None:
    """A direct call of the task carries the same expiry."""
    moment = datetime.now(UTC) + SOON
    handler = on(evt, offload={"expires": naive(moment)}, name=HANDLER)(lambda sender: None)
    handler.task.delay("ada")
    handler.task.apply_async(("ada",), expires=naive(moment))
    declared, passed = (datetime.fromisoformat(message.headers["expires"]) for message in sent())
    assert declared == passed.replace(tzinfo=UTC) == moment


def times_of(moment: datetime) -> list[Any]:
    """Returns a moment in each form that Celery takes as `eta`."""
    return [naive(moment), moment, naive(moment).isoformat(), moment.isoformat()]


@pytest.mark.parametrize("form", range(len(times_of(datetime.now(UTC)))))
def test_a_retry_at_a_time_is_due_at_it(zone: str, evt: Event, app: Celery, work: Work, form: int) -> None:
    """A retry is due at the time that Celery reads from `eta`."""
    begun = datetime.now(UTC)
    moment = begun + SOON

    @on(evt, offload=True, name=HANDLER)
    def handler(sender: Any) -> None:
        raise Retry("later", when=times_of(moment)[form])

    work(app)
    emit(evt)
    due = only("waiting").due
    assert due is not None
    assert abs(due - moment) < timedelta(seconds=1) + (datetime.now(UTC) - begun)


def test_what_has_expired_when_it_is_declared_is_a_dead_letter(evt: Event, app: Celery, sent: Sent) -> None:
    """A delivery that has expired at the emit becomes a dead letter without a worker."""
    emit(handled(evt, expires=datetime(2020, 1, 1)))
    outbox.Relay(app).step()
    assert (only().state, only().error) == ("dead", "expired before it started")


@pytest.mark.parametrize("kind", KINDS)
def test_what_expires_in_a_queue_that_nobody_reads_is_a_dead_letter(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    make_app: Callable[..., Celery],
    evt: Event,
    kind: str,
) -> None:
    """A delivery expires while its message waits in a queue without a consumer; a later claim of it is refused."""
    on_database(request, monkeypatch, kind)
    app = bind(make_app())
    emission = emit(handled(evt, expires=3600, queue="nobody"))
    outbox.Relay(app).step()
    assert only().state == "queued"
    outbox.expire_now()
    outbox.Relay(app).step()
    assert (only().state, only().error, only().attempts) == ("dead", "expired before it started", 0)
    assert outbox.refused_state(emission.id, HANDLER) == "dead"


def test_what_expires_while_the_broker_is_away_is_a_dead_letter(evt: Event, app: Celery) -> None:
    """A delivery expires while the broker is unreachable."""
    emit(handled(evt, expires=3600, countdown=1800))
    outbox.expire_now()
    faults.set_reachable(False)
    outbox.Relay(app).step()
    faults.set_reachable(True)
    assert only().state == "dead"


def test_what_no_worker_knows_expires(evt: Event, app: Celery) -> None:
    """A delivery that waits for a worker with its handler expires."""
    emission = emit(handled(evt, expires=3600))
    outbox.requeue_unknown(emission.id, HANDLER)
    outbox.expire_now()
    assert outbox.close_expired() == 1
    assert only().state == "dead"


def test_a_retry_does_not_outlive_its_delivery(evt: Event, app: Celery) -> None:
    """A delivery that waits for a retry expires; its error and its history name the earlier run."""
    run = outbox.start_run(emit(handled(evt, expires=3600)).id, HANDLER)
    outbox.reschedule(run, 1800.0, "ValueError: no stock")
    outbox.expire_now()
    assert outbox.close_expired() == 1
    assert (only().state, only().error) == ("dead", "expired before it ran again")
    assert [run.why for run in only().history] == ["ValueError: no stock"]


def test_a_run_goes_on_after_its_expiry(evt: Event, app: Celery) -> None:
    """A run that started in time may finish after the expiry."""
    run = outbox.start_run(emit(handled(evt, expires=3600)).id, HANDLER)
    outbox.expire_now()
    assert outbox.close_expired() == 0
    outbox.finish(run)
    assert only().state == "done"


def test_many_expire_together(evt: Event, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many deliveries expire in batches until none is left."""
    outbox.expire_in_batches(monkeypatch, 2)
    handled(evt, expires=3600)
    for _ in range(5):
        emit(evt)
    outbox.expire_now()
    assert outbox.close_expired() == 5


def test_what_is_replayed_does_not_expire_again(evt: Event, app: Celery) -> None:
    """A replayed delivery has no expiry any more."""
    emit(handled(evt, expires=0))
    assert outbox.close_expired() == 1
    assert outbox.replay_all() == 1
    assert outbox.close_expired() == 0


def test_the_class_of_a_task_may_say_when_it_expires(evt: Event, app: Celery, work: Work) -> None:
    """An expiry of the task class is kept in the row, because Celery would report an expired message as cancelled."""
    handled(evt, base=Expiring)
    emit(evt)
    drain_publisher()
    work(app)
    assert only("dead").error == "expired before it started"


def test_none_says_that_it_does_not_expire(evt: Event, app: Celery, work: Work) -> None:
    """`expires=None` overrides the expiry of the task class."""
    handled(evt, base=Expiring, expires=None)
    emit(evt)
    work(app)
    assert only("done").attempts == 1
