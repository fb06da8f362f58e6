"""Tracked deliveries in a worker: contract section 7."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import Ignore, Reject
from sqlalchemy.exc import OperationalError

from nitro.domain.entities.base_entity import Entity
from nitro.errors import NotTracked
from nitro.infrastructure.database import transaction, write_connection
from nitro.infrastructure.events import Event, Namespace, emit, on
from nitro.infrastructure.offload import Offload, bind, cancel, current_delivery
from support import faults, outbox
from support.broker import DELIVERY_HEADER, ENVELOPE_KEY
from support.databases import KINDS, on_database
from support.waiting import until

Work = Callable[..., Any]
Sent = Callable[..., list[Any]]
TRACKED = ("at-least-once", "exactly-once")
AT_ONCE = {"retry_backoff": False, "default_retry_delay": 0}


class Ledger(Entity, table=True):
    """The rows that an exactly-once handler writes."""

    __tablename__ = "outbox_ledger"

    key: str


def entry(state: str | None = None) -> outbox.DeliveryRecord:
    """Waits until the only delivery is in this state, if a state is passed, and returns it."""

    def in_state() -> outbox.DeliveryRecord | None:
        only = outbox.delivery()
        return only if state in (None, only.state) else None

    record = until(in_state)
    assert record is not None
    return record


def publish_again(app: Celery, sent: Sent) -> None:
    """Publishes each queued message twice, as a broker may deliver it."""
    for message in sent():
        for _ in range(2):
            app.send_task(message.name, kwargs=message.kwargs, task_id=message.id, headers={"nitro_delivery": "x"})


@pytest.mark.parametrize("delivery", TRACKED)
@pytest.mark.parametrize("kind", ["sync", "async", "generator", "async generator"])
def test_a_delivery_is_closed_when_its_handler_has_finished(
    evt: Event, app: Celery, work: Work, delivery: str, kind: str
) -> None:
    """A tracked delivery is done when its handler has finished, for every kind of function."""
    ran: list[str] = []

    def sync(sender: str) -> None:
        ran.append(sender)

    async def coroutine(sender: str) -> None:
        await asyncio.sleep(0)
        ran.append(sender)

    def generator(sender: str) -> Any:
        yield ran.append(sender)

    async def async_generator(sender: str) -> Any:
        yield ran.append(sender)

    kinds: dict[str, Any] = {
        "sync": sync,
        "async": coroutine,
        "generator": generator,
        "async generator": async_generator,
    }
    on(evt, offload={"delivery": delivery}, name="shop.handler")(kinds[kind])
    work(app)
    emit(evt, "ada")
    assert entry("done").attempts == 1
    assert ran == ["ada"]


@pytest.mark.parametrize("delivery", TRACKED)
def test_a_message_that_comes_twice_runs_once(evt: Event, app: Celery, work: Work, sent: Sent, delivery: str) -> None:
    """The second message of a closed delivery is dropped, and the first result stays."""
    ran: list[str] = []
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: ran.append(sender) or "done")
    emission = emit(evt, "ada")
    publish_again(app, sent)
    worker = work(app)
    assert worker.only(emission) == "done"
    worker.of(app.send_task("celery.backend_cleanup").id)
    assert ran == ["ada"]
    assert worker.only(emission) == "done"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_exactly_once_writes_in_the_transaction_of_its_delivery(evt: Event, app: Celery, work: Work, kind: str) -> None:
    """A failed run's writes are rolled back; the writes of the run that closed the row stay."""
    seen: list[bool] = []

    def save() -> None:
        delivery = current_delivery()
        assert delivery is not None
        seen.append(delivery.transaction is not None)
        Ledger(key=f"attempt {delivery.attempt}").save()
        if delivery.attempt < 3:
            raise ConnectionError("again")

    def sync(sender: str) -> None:
        save()

    async def coroutine(sender: str) -> None:
        await asyncio.sleep(0)
        save()

    functions: dict[str, Any] = {"sync": sync, "async": coroutine}
    on(evt, offload={"delivery": "exactly-once", **AT_ONCE}, name="shop.handler")(functions[kind])
    work(app)
    emit(evt, "ada")
    assert (entry("done").attempts, entry().retries) == (3, 2)
    assert [row.key for row in Ledger.all()] == ["attempt 3"]
    assert seen == [True, True, True]


def test_exactly_once_emits_in_its_transaction(evt: Event, app: Celery, work: Work) -> None:
    """A failed exactly-once run leaves no emission."""
    further = Namespace().event("further")
    on(further, offload={"queue": "elsewhere"}, name="shop.further")(lambda sender: None)

    @on(evt, offload={"delivery": "exactly-once", **AT_ONCE}, name="shop.handler")
    def handler(sender: str) -> None:
        delivery = current_delivery()
        assert delivery is not None
        emit(further, delivery.attempt)
        if delivery.attempt == 1:
            raise ConnectionError("again")

    work(app)
    emit(evt, "ada")
    until(lambda: sorted(record.state for record in outbox.deliveries()) == ["done", "queued"])


@pytest.mark.parametrize("delivery", TRACKED)
def test_a_run_that_was_taken_over_does_not_close(
    evt: Event, app: Celery, work: Work, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    """A run whose delivery was claimed again cannot close it; its exactly-once writes are rolled back."""
    faults.take_over_runs(monkeypatch)

    @on(evt, offload={"delivery": delivery}, name="shop.handler")
    def handler(sender: str) -> None:
        if delivery == "exactly-once":
            Ledger(key="late").save()

    worker = work(app)
    emit(evt, "ada")
    until(lambda: entry().attempts == 2)
    worker.of(app.send_task("celery.backend_cleanup").id)
    assert (entry().state, entry().attempts) == ("running", 2)
    assert Ledger.all() == []


@pytest.mark.parametrize("delivery", TRACKED)
def test_what_fails_for_good_is_a_dead_letter(evt: Event, app: Celery, work: Work, delivery: str) -> None:
    """A delivery whose retries are used up becomes a dead letter with error and traceback."""

    @on(evt, offload={"delivery": delivery, "max_retries": 1, **AT_ONCE}, name="shop.handler")
    def failing(sender: str) -> None:
        raise LookupError("no such parcel")

    worker = work(app)
    emission = emit(evt, "ada")
    dead = entry("dead")
    assert (dead.attempts, dead.retries) == (2, 1)
    assert "LookupError: no such parcel" in str(dead.error)
    assert "in failing" in str(dead.error)
    assert isinstance(worker.only(emission), LookupError)


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_of_an_error_can_be_kept(
    request: pytest.FixtureRequest,
    evt: Event,
    make_app: Callable[..., Celery],
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """An error text that the database cannot store is escaped."""
    on_database(request, monkeypatch, kind)
    app = bind(make_app())

    @on(evt, offload={"max_retries": 0}, name="shop.handler")
    def failing(sender: str) -> None:
        raise LookupError("a NUL \0 and half a pair \ud800")

    work(app)
    emit(evt, "ada")
    assert r"a NUL \0 and half a pair \ud800" in str(entry("dead").error)


def test_an_error_that_cannot_be_told_is_a_dead_letter(evt: Event, app: Celery, work: Work) -> None:
    """An exception whose `str()` fails is recorded under its own class."""

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise LookupError

    @on(evt, offload={"max_retries": 0}, name="shop.handler")
    def failing(sender: str) -> None:
        raise Unspeakable

    work(app)
    emit(evt, "ada")
    assert str(entry("dead").error).endswith("Unspeakable: <exception str() failed>\n")


def test_a_run_whose_wrapper_swallows_the_error_is_closed(
    evt: Event, make_app: Callable[..., Celery], work: Work
) -> None:
    """A run whose error a user's task class swallows is closed as done, and its writes are rolled back."""

    class Swallowing(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return self.run(*args, **kwargs)
            except LookupError:
                return "swallowed"

    app = bind(make_app(task_cls=Swallowing))

    @on(evt, offload={"delivery": "exactly-once", "throws": (LookupError,)}, name="shop.handler")
    def failing(sender: str) -> None:
        Ledger(key="rolled back").save()
        raise LookupError("no stock")

    worker = work(app)
    assert worker.only(emit(evt, "ada")) == "swallowed"
    assert entry("done").attempts == 1
    assert Ledger.all() == []


def test_an_eager_task_inside_a_run_keeps_its_own_retries(evt: Event, app: Celery, work: Work) -> None:
    """An eager task inside a run has its own retries, which do not affect the delivery."""
    tries: list[int] = []

    @app.task(bind=True, max_retries=2, default_retry_delay=0, shared=False, name="shop.inner")
    def inner(self: Any) -> str:
        tries.append(self.request.retries)
        if len(tries) < 3:
            raise self.retry()
        return "done"

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: str) -> Any:
        return inner.apply().get(disable_sync_subtasks=False)

    assert work(app).only(emit(evt, "ada")) == "done"
    assert tries == [0, 1, 2]


def test_an_expected_error_is_a_dead_letter_at_once(evt: Event, app: Celery, work: Work) -> None:
    """An exception that `throws` names is not retried."""

    @on(evt, offload={"throws": (KeyError,), **AT_ONCE}, name="shop.handler")
    def failing(sender: str) -> None:
        raise KeyError("sku")

    work(app)
    emit(evt, "ada")
    assert entry("dead").attempts == 1


def test_a_retry_is_kept_in_the_row(evt: Event, app: Celery, work: Work, sent: Sent) -> None:
    """A retry waits in the row and is published when it is due; Celery shows RETRY."""

    @on(evt, offload={"retry_backoff": 300, "retry_jitter": False}, name="shop.handler")
    def failing(sender: str) -> None:
        raise ConnectionError("away")

    worker = work(app)
    emission = emit(evt, "ada")
    delayed = until(lambda: entry().retries and entry())
    assert (delayed.state, delayed.retries) == ("waiting", 1)
    assert "ConnectionError: away" in str(delayed.error)
    assert delayed.due is not None
    assert delayed.started is not None
    assert 290 < (delayed.due - delayed.started).total_seconds() < 320
    until(lambda: app.AsyncResult(emission.offloaded["shop.handler"]).state == "RETRY")
    assert worker is not None


@pytest.mark.parametrize(("raised", "state"), [(Ignore(), "done"), (Reject("no", requeue=False), "dead")])
def test_celerys_own_exceptions_close_the_row(
    evt: Event, app: Celery, work: Work, raised: Exception, state: str
) -> None:
    """`Ignore` and `Reject` close the row, as they end any Celery task."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: str) -> None:
        raise raised

    work(app)
    emit(evt, "ada")
    assert entry(state).attempts == 1


def test_what_has_expired_is_a_dead_letter(evt: Event, app: Celery, work: Work) -> None:
    """An expired delivery becomes a dead letter and never runs."""
    ran: list[str] = []
    on(evt, offload=Offload(expires=0), name="shop.handler")(lambda sender: ran.append(sender))
    work(app)
    emit(evt, "ada")
    assert "expired" in str(entry("dead").error)
    assert ran == []


def test_a_message_without_a_row_is_parked(evt: Event, app: Celery, work: Work, sent: Sent) -> None:
    """A message without a row becomes a dead letter that says so."""
    ran: list[str] = []
    on(evt, offload=True, name="shop.handler")(lambda sender: ran.append(sender))
    emit(evt, "ada")
    with write_connection() as connection:
        outbox.delete_all(connection)
    work(app)
    until(outbox.deliveries)
    assert "no row" in str(entry("dead").error)
    assert ran == []


def test_a_message_that_names_anything_cannot_forge_a_line(
    evt: Event, app: Celery, work: Work, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    """A parked message is logged in one line, whatever its emission id contains."""
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    emit(evt, "ada")
    (message,) = sent()
    message.kwargs[ENVELOPE_KEY]["emission"] = "01a21240-501e-74d1-8f0f\nforged"
    app.send_task("shop.handler", (), message.kwargs, headers={DELIVERY_HEADER: "at-least-once"})
    work(app)
    until(lambda: "is parked" in caplog.text)
    (line,) = [record.getMessage() for record in caplog.records if "is parked" in record.getMessage()]
    assert "\n" not in line


def test_a_payload_of_another_version_is_parked(evt: Event, app: Celery, work: Work) -> None:
    """A payload of an unknown version becomes a dead letter after its retries."""
    on(evt, offload={"max_retries": 1, **AT_ONCE, "queue": "celery"}, name="shop.handler")(lambda sender: None)
    emit(evt, "ada")
    outbox.replace_payloads('{"nitro":99}')
    work(app)
    assert "PayloadUnreadable" in str(entry("dead").error)


@pytest.mark.parametrize("state", ["dead", "done"])
def test_a_replay_runs_again_under_the_same_key(evt: Event, app: Celery, work: Work, state: str) -> None:
    """A replayed delivery has the same idempotency key."""
    keys: list[str] = []

    @on(evt, offload={"max_retries": 0}, name="shop.handler")
    def handler(sender: str) -> None:
        delivery = current_delivery()
        assert delivery is not None
        keys.append(delivery.idempotency_key)
        if state == "dead" and len(keys) == 1:
            raise ConnectionError("away")

    work(app)
    emit(evt, "ada")
    first = entry(state)
    assert outbox.replay(first.id) == 1
    until(lambda: len(keys) == 2)
    entry("done")
    assert keys == [first.id, first.id]


def test_cancel_stops_what_has_not_started(evt: Event, app: Celery, work: Work) -> None:
    """A cancelled delivery never runs, although its message is queued already."""
    ran: list[str] = []
    on(evt, offload=True, name="shop.a")(lambda sender: ran.append("a"))
    on(evt, offload=True, name="shop.b")(lambda sender: ran.append("b"))
    emission = emit(evt, "ada")
    assert cancel(emission.id, "shop.a") == 1
    work(app).of(emission.offloaded["shop.b"])
    assert ran == ["b"]
    assert outbox.states() == {"shop.a": "cancelled", "shop.b": "done"}


def test_cancel_of_a_whole_emission_counts(evt: Event, app: Celery) -> None:
    """`cancel` of an emission cancels all deliveries; a second call cancels none and raises nothing."""
    for name in ("shop.a", "shop.b"):
        on(evt, offload=True, name=name)(lambda sender: None)
    emission = emit(evt, "ada")
    assert (cancel(emission.id), cancel(emission.id)) == (2, 0)


def test_cancel_takes_part_in_a_transaction(evt: Event, app: Celery) -> None:
    """A rolled-back `cancel` cancels nothing."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    emission = emit(evt, "ada")
    with pytest.raises(ZeroDivisionError), transaction():
        assert cancel(emission.id) == 1
        raise ZeroDivisionError
    assert entry().state == "queued"


def test_cancel_of_an_untracked_delivery_raises(evt: Event, app: Celery) -> None:
    """`cancel` of an untracked delivery raises, and the error names revoke."""
    on(evt, offload={"delivery": "broker"}, name="shop.a")(lambda sender: None)
    with pytest.raises(NotTracked, match="revoke"):
        cancel(emit(evt, "ada").id)


def test_cancel_of_an_unknown_handler_raises(evt: Event, app: Celery) -> None:
    """`cancel` of a handler without a delivery raises, although the emission is tracked."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    with pytest.raises(NotTracked, match=r"shop\.b"):
        cancel(emit(evt, "ada").id, "shop.b")


def test_revoke_cancels_what_has_not_started(evt: Event, app: Celery, work: Work) -> None:
    """Celery's revoke cancels the row of a delivery that has not started."""
    on(evt, offload={"countdown": 3600}, name="shop.a")(lambda sender: None)
    emission = emit(evt, "ada")
    work(app)
    app.control.revoke(emission.offloaded["shop.a"])
    assert entry("cancelled").attempts == 0


def test_a_database_that_is_away_delays_a_run(
    evt: Event, app: Celery, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database outage delays claim and close; the handler runs once."""
    ran: list[str] = []
    away = OperationalError("SELECT 1", {}, Exception("the database is away"))
    failures = faults.fail_runs(monkeypatch, 2, away)
    on(evt, offload=True, name="shop.a")(lambda sender: ran.append(sender))
    work(app)
    emit(evt, "ada")
    assert entry("done").attempts == 1
    assert ran == ["ada"]
    assert failures == {"claim": 0, "finish": 0}


def test_the_app_may_wrap_every_run(evt: Event, make_app: Callable[..., Celery], work: Work) -> None:
    """A user's task class with `__call__` wraps tracked runs too."""
    around: list[str] = []

    class Wrapped(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            around.append("in")
            try:
                return self.run(*args, **kwargs)
            finally:
                around.append("out")

    app = bind(make_app(task_cls=Wrapped))
    on(evt, offload=True, name="shop.a")(lambda sender: around.append("handler"))
    work(app)
    emit(evt, "ada")
    entry("done")
    assert around == ["in", "handler", "out"]


def test_stored_untracked_deliveries_leave_later_with_their_payload(
    evt: Event, app: Celery, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untracked delivery of a broker outage waits in a row, which is `published` once the message is sent."""
    ran: list[Any] = []
    on(evt, offload={"delivery": "broker"}, name="shop.a")(lambda sender, **kwargs: ran.append((sender, kwargs)))
    faults.set_reachable(False)
    emit(evt, "ada", tags={1})
    assert entry().state == "waiting"
    faults.set_reachable(True)
    assert entry("published").attempts == 0
    work(app)
    until(lambda: ran == [("ada", {"tags": {1}})])


def test_a_forged_message_runs_nothing_that_was_not_committed(evt: Event, app: Celery, work: Work, sent: Sent) -> None:
    """The payload comes from the row, so that a forged message runs nothing that was not committed."""
    ran: list[str] = []
    on(evt, offload=True, name="shop.a")(lambda sender: ran.append(sender))
    emit(evt, "ada")
    (message,) = sent()
    forged = replace(message, id="forged")
    app.send_task(forged.name, kwargs=forged.kwargs, task_id=forged.id)
    app.send_task(message.name, kwargs=message.kwargs, task_id=message.id)
    work(app)
    entry("done")
    until(lambda: ran)
    assert ran == ["ada"]


def test_a_run_that_nobody_knows_of_is_taken_back(
    evt: Event, app: Celery, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that no task of its live worker belongs to is counted as lost."""
    outbox.check_runs_every(monkeypatch, 0.1)
    on(evt, offload={"queue": "elsewhere"}, name="shop.a")(lambda sender: None)
    emission = emit(evt, "ada")
    work(app)
    outbox.start_run(emission.id, "shop.a", f"{outbox.worker_id()}/1-1")
    until(lambda: entry().losses == 1)
    assert "without closing the delivery" in str(entry().error)


def test_a_run_that_takes_long_is_not_taken_back(
    evt: Event, app: Celery, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run that its worker knows is not taken back."""
    checks = outbox.check_runs_every(monkeypatch, 0.05)

    @on(evt, offload=True, name="shop.a")
    def handler(sender: str) -> None:
        before = len(checks)
        until(lambda: len(checks) > before + 3)

    work(app, pool="threads")
    emit(evt, "ada")
    assert (entry("done").attempts, entry().losses) == (1, 0)


def test_a_worker_that_has_ended_leaves_nothing_behind(evt: Event, app: Celery, work_for_a_while: Any) -> None:
    """A worker that has ended leaves neither a thread nor a row in the table of workers."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    with work_for_a_while(app) as worker:
        worker.only(emit(evt, "ada"))
        until(lambda: outbox.count_workers() == 1)
    assert outbox.count_workers() == 0
    assert not {"nitro-supervisor", "nitro-relay"} & {thread.name for thread in threading.enumerate()}
