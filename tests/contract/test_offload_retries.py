"""Retries and acknowledgement of an offloaded handler: contract section 7, as far as it needs no outbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, Task

from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload, bind, current_delivery

Work = Callable[..., Any]
AT_ONCE = {"retry_backoff": False, "default_retry_delay": 0}


def failing(runs: list[int], error: type[Exception] = ValueError, times: int = 99) -> Any:
    """Returns a handler that notes the number of each attempt and fails that many times."""

    def handler(sender: Any) -> str:
        delivery = current_delivery()
        assert delivery is not None
        runs.append(delivery.attempt)
        if len(runs) <= times:
            raise error("no stock")
        return "done"

    return handler


def test_failure_is_retried_until_it_succeeds(evt: Event, app: Celery, work: Work) -> None:
    """By default every exception is worth another attempt, under the same task id."""
    runs: list[int] = []
    on(evt, offload=AT_ONCE, name="shop.handler")(failing(runs, times=2))
    assert work(app).only(emit(evt)) == "done"
    assert runs == [1, 2, 3]


def test_async_failure_is_retried(evt: Event, app: Celery, work: Work) -> None:
    """An async handler that fails is retried like a sync one."""
    runs: list[int] = []
    fails = failing(runs, times=1)

    @on(evt, offload=AT_ONCE, name="shop.handler")
    async def handler(sender: Any) -> Any:
        return fails(sender)

    assert work(app).only(emit(evt)) == "done"
    assert runs == [1, 2]


def test_max_retries_ends_the_attempts(evt: Event, app: Celery, work: Work) -> None:
    """After the last attempt the task fails with the handler's own exception."""
    runs: list[int] = []
    on(evt, offload=AT_ONCE | {"max_retries": 2}, name="shop.handler")(failing(runs))
    outcome = work(app).only(emit(evt))
    assert repr(outcome) == "ValueError('no stock')"
    assert runs == [1, 2, 3]


def test_default_is_ten_retries_with_backoff_and_jitter(evt: Event, app: Celery) -> None:
    """The Celery task has the default numbers that the contract names."""
    handler = on(evt, offload=True, name="shop.handler")(failing([]))
    names = ("autoretry_for", "max_retries", "retry_backoff", "retry_backoff_max", "retry_jitter")
    assert [getattr(handler.task, name) for name in names] == [(Exception,), 10, True, 600, True]


@pytest.mark.parametrize("attempt", [1, 5, 12])
def test_backoff_grows_to_ten_minutes(evt: Event, app: Celery, monkeypatch: Any, attempt: int) -> None:
    """Attempt n waits up to 2ⁿ⁻¹ seconds, never more than 600."""
    waits: list[tuple[int, int, bool]] = []

    def noted(factor: int, retries: int, maximum: int, full_jitter: bool) -> int:
        waits.append((factor * 2**retries, maximum, full_jitter))
        return 0

    monkeypatch.setattr("celery.app.autoretry.get_exponential_backoff_interval", noted)
    task = on(evt, offload={"max_retries": 99}, name="shop.handler")(failing([])).task
    task.push_request(called_directly=True, retries=attempt - 1)
    try:
        with pytest.raises(ValueError, match="no stock"):
            task.run("ada")
    finally:
        task.pop_request()
    assert waits == [(2 ** (attempt - 1), 600, True)]


@pytest.mark.parametrize(
    "options",
    [
        {"throws": KeyError},
        {"throws": (KeyError,), "dont_autoretry_for": (ValueError,)},
        {"dont_autoretry_for": KeyError},
        {"autoretry_for": (ValueError,)},
    ],
)
def test_expected_exception_is_not_retried(evt: Event, app: Celery, work: Work, options: dict[str, Any]) -> None:
    """An exception that `throws` expects, or that Celery's options exclude, fails at the first attempt."""
    runs: list[int] = []
    on(evt, offload=AT_ONCE | options, name="shop.handler")(failing(runs, KeyError))
    emission = emit(evt)
    assert work(app).state(emission) == "FAILURE"
    assert runs == [1]


def test_handler_may_retry_by_itself(evt: Event, app: Celery, work: Work) -> None:
    """`raise handler.task.retry(…)` works as in any Celery task, with the same arguments."""
    runs: list[Any] = []

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any, **kwargs: Any) -> str:
        runs.append((sender, kwargs))
        if len(runs) == 1:
            raise handler.task.retry(countdown=0)
        return "done"

    assert work(app).only(emit(evt, "ada", total={5})) == "done"
    assert runs == [("ada", {"total": {5}})] * 2


def test_retry_without_a_sender_stays_without_one(evt: Event, app: Celery, work: Work) -> None:
    """A handler called by `.task.delay()` in a chain gets the same arguments at the second attempt."""
    runs: list[Any] = []

    @on(evt, offload=AT_ONCE, name="shop.handler")
    def handler(sender: Any, **kwargs: Any) -> str:
        runs.append((sender, kwargs))
        if len(runs) == 1:
            raise ValueError("again")
        return "done"

    @app.task(name="shop.plain", shared=False)
    def plain() -> str:
        return "from plain"

    worker = work(app)
    assert worker.of((plain.s() | handler.task.s(reason="new")).delay().id) == "done"
    assert runs == [("from plain", {"reason": "new"})] * 2


def test_tasks_acknowledge_late_and_reject_when_a_worker_is_lost(evt: Event, make_app: Callable[..., Celery]) -> None:
    """Tasks of handlers are acknowledged late, whatever the settings of the app."""
    bind(make_app(task_acks_late=False, task_reject_on_worker_lost=False))
    handler = on(evt, offload=True, name="shop.handler")(failing([]))
    assert (handler.task.acks_late, handler.task.reject_on_worker_lost) == (True, True)


def unacknowledged(app: Celery) -> int:
    """Returns the number of messages of running tasks that the broker still keeps."""
    from celery.worker import state

    return sum(not request.acknowledged for request in state.active_requests)


@pytest.mark.parametrize(
    ("delivery", "kept"), [("at-most-once", 0), ("broker", 1), ("at-least-once", 1)], ids=lambda value: str(value)
)
def test_message_is_kept_while_its_handler_runs_unless_at_most_once(
    evt: Event, app: Celery, work: Work, delivery: Any, kept: int
) -> None:
    """An at-most-once message is acknowledged before its handler starts, and any other after its end."""
    seen: list[int] = []

    @on(evt, offload=Offload(delivery=delivery), name="shop.handler")
    def handler(sender: Any) -> None:
        seen.append(unacknowledged(app))

    work(app, pool="threads").only(emit(evt))
    assert seen == [kept]


@pytest.mark.parametrize("source", ["registration", "setting"])
def test_at_most_once_is_never_retried(
    evt: Event, app: Celery, work: Work, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """A handler with delivery `at-most-once` runs once, whatever the retry options of its task."""
    runs: list[int] = []
    if source == "setting":
        monkeypatch.setenv("NITRO_DELIVERY", "at-most-once")
    options = AT_ONCE | ({"delivery": "at-most-once"} if source == "registration" else {})
    on(evt, offload=options, name="shop.handler")(failing(runs))
    emission = emit(evt)
    assert work(app).state(emission) == "FAILURE"
    assert runs == [1]


def test_at_most_once_is_not_retried_in_eager_mode(evt: Event, make_app: Callable[..., Celery]) -> None:
    """A handler with delivery `at-most-once` runs once in eager mode, too."""
    bind(make_app(task_always_eager=True))
    runs: list[int] = []
    on(evt, offload=AT_ONCE | {"delivery": "at-most-once"}, name="shop.handler")(failing(runs))
    emit(evt)
    assert runs == [1]


def test_delivery_belongs_to_the_registration(evt: Event, app: Celery, work: Work) -> None:
    """A function may be retried on one event and run at most once on a second one."""
    runs: list[int] = []
    function = failing(runs, times=2)
    other = Event("other")
    on(evt, offload=Offload(delivery="at-most-once", **AT_ONCE), name="shop.handler")(function)
    on(other, offload=Offload(delivery="broker", **AT_ONCE), name="shop.handler")(function)
    worker = work(app)
    assert worker.state(emit(evt)) == "FAILURE"
    assert worker.only(emit(other)) == "done"
    assert runs == [1, 1, 2]


class Patient(Task):
    """A task class of the user's own with its own retry attributes."""

    max_retries = 1
    default_retry_delay = 0
    retry_backoff = False
    finished: list[tuple[str, str]] = []

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.finished.append(("failure", self.name))

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.finished.append(("success", self.name))


def test_task_class_of_the_app_decides_on_retries(evt: Event, make_app: Callable[..., Celery], work: Work) -> None:
    """Attributes of the user's `task_cls` win over Nitro's retry defaults."""
    app = bind(make_app(task_cls=Patient))
    runs: list[int] = []
    on(evt, offload={"default_retry_delay": 0}, name="shop.handler")(failing(runs))
    assert work(app).state(emit(evt)) == "FAILURE"
    assert runs == [1, 2]


def test_option_of_the_handler_wins_over_the_task_class(evt: Event, make_app: Callable[..., Celery]) -> None:
    """An option of the handler wins over the attribute of the task class."""
    bind(make_app(task_cls=Patient))
    assert on(evt, offload={"max_retries": 7}, name="shop.handler")(failing([])).task.max_retries == 7


def test_throws_of_the_task_class_is_not_retried(evt: Event, make_app: Callable[..., Celery], work: Work) -> None:
    """An exception that the user's own task class expects is expected of a handler too."""

    class Expecting(Task):
        throws = (KeyError,)

    app = bind(make_app(task_cls=Expecting))
    runs: list[int] = []
    on(evt, offload=AT_ONCE, name="shop.handler")(failing(runs, KeyError))
    assert work(app).state(emit(evt)) == "FAILURE"
    assert runs == [1]


def test_hooks_of_the_task_class_run(evt: Event, make_app: Callable[..., Celery], work: Work) -> None:
    """`on_success` and its siblings are called for handlers as for other tasks."""
    app = bind(make_app(task_cls=Patient))
    Patient.finished.clear()
    on(evt, offload=True, name="shop.fine")(lambda sender: "fine")
    on(evt, offload={"max_retries": 0}, name="shop.failing")(failing([]))
    emission = emit(evt)
    worker = work(app)
    for task_id in emission.offloaded.values():
        worker.of(task_id)
    assert sorted(Patient.finished) == [("failure", "shop.failing"), ("success", "shop.fine")]
