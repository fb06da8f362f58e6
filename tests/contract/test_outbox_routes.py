"""A row names the queue of its message, whatever happened to the routes: contract sections 7 and 14."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from typing import Any

import pytest
from celery import Celery, Task
from celery.signals import before_task_publish
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast
from kombu.transport import memory

from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from support import outbox
from support.broker import drain_publisher
from support.databases import KINDS, on_database
from support.waiting import until

MakeApp = Callable[..., Celery]
HANDLER = "shop.a"
MANY = 5
SHOP = Exchange("shop", type="topic")
TOPICS = [Queue("celery"), Queue("mail", SHOP, routing_key="mail.#"), Queue("bills", SHOP, routing_key="*.bill")]


class OfClass(Task):
    """A task class that names a queue."""

    abstract = True
    queue = "classy"


class Elsewhere(Task):
    """A task class that chooses the queue in `apply_async`."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publishes into the queue `chosen`."""
        return super().apply_async(args, kwargs, **{**options, "queue": "chosen"})


def release(make_app: MakeApp, evt: Event, offload: Any = True, **conf: Any) -> Celery:
    """Returns a bound app with these settings and the handler, as one release of an application."""
    on(evt, offload=offload, name=HANDLER)(handle)
    return bind(make_app(**conf))


def in_queues() -> dict[str, int]:
    """Returns the number of messages in each queue of the broker."""
    drain_publisher()
    return {name: size for name, queue in memory.Channel.queues.items() if (size := queue.qsize())}


def named_queues() -> list[str]:
    """Returns the queue names of the rows."""
    return [entry.queue for entry in outbox.deliveries()]


def handle(sender: object) -> None:
    """The offloaded handler."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_goes_by_the_routes_of_today(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    make_app: MakeApp,
    evt: Event,
    kind: str,
) -> None:
    """A release that moves a handler to another queue publishes its waiting deliveries there; their rows name it."""
    on_database(request, monkeypatch, kind)
    release(make_app, evt, {"countdown": 3600}, task_routes={"shop.*": {"queue": "old"}})
    for _ in range(MANY):
        emit(evt)
    assert named_queues() == ["old"] * MANY
    outbox.age(3600)
    assert outbox.Relay(bind(make_app(task_routes={"shop.*": {"queue": "new"}}))).step() == MANY
    assert in_queues() == {"new": MANY}
    assert named_queues() == ["new"] * MANY


def test_a_change_of_routes_multiplies_nothing(make_app: MakeApp, evt: Event) -> None:
    """A lost message is published once more, into the queue of the current routes."""
    release(make_app, evt, task_routes={"shop.*": {"queue": "old"}})
    for _ in range(MANY):
        emit(evt)
    assert in_queues() == {"old": MANY}
    memory.Channel.queues.clear()
    for _ in range(8):
        outbox.age(90)
        outbox.Relay(bind(make_app(task_routes={"shop.*": {"queue": "new"}}))).step()
    assert in_queues() == {"new": MANY}
    assert {(entry.state, entry.queue, entry.publications) for entry in outbox.deliveries()} == {("queued", "new", 2)}


def test_two_releases_side_by_side_multiply_nothing(make_app: MakeApp, evt: Event) -> None:
    """The relays of two releases do not publish each other's queued messages again."""
    old = release(make_app, evt, task_routes={"shop.*": {"queue": "old"}})
    new = make_app(task_routes={"shop.*": {"queue": "new"}})
    for _ in range(MANY):
        emit(evt)
    in_queues()
    for _ in range(4):
        for app in (new, old):
            outbox.age(90)
            outbox.Relay(bind(app)).step()
    assert in_queues() == {"old": MANY}


def by_emission(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_more: Any) -> dict[str, str]:
    """Routes each emission into its own queue."""
    return {"queue": kwargs["__nitro__"]["emission"]}


def test_a_router_may_go_by_the_message(make_app: MakeApp, evt: Event) -> None:
    """A router gets the same arguments for the row as for the message."""
    release(make_app, evt, task_routes=(by_emission,))
    emitted = [emit(evt).id, emit(evt).id]
    assert in_queues() == dict.fromkeys(emitted, 1)
    assert sorted(named_queues()) == emitted


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "by-a-relay"])
def test_a_router_that_changes_its_answer_is_followed(make_app: MakeApp, evt: Event, late: bool) -> None:
    """The row names the queue that the message went to, even if the router first named another queue."""
    turns = cycle(["first", "second", "third"])
    app = release(make_app, evt, {"countdown": 3600 if late else 0}, task_routes=(lambda *_, **__: next(turns),))
    for _ in range(MANY):
        emit(evt)
    if late:
        outbox.age(3600)
        assert outbox.Relay(app).step() == MANY
    sizes = in_queues()
    assert sum(sizes.values()) == MANY
    assert {name: named_queues().count(name) for name in sizes} == sizes


@pytest.mark.parametrize("base", [OfClass, Elsewhere])
def test_a_task_class_may_choose_the_queue(make_app: MakeApp, evt: Event, base: type[Task]) -> None:
    """A task class chooses the queue by its attribute or in `apply_async`."""
    release(make_app, evt, {"base": base})
    emit(evt)
    assert in_queues() == dict.fromkeys(named_queues(), 1)


def test_a_watched_message_is_noted_too(make_app: MakeApp, evt: Event) -> None:
    """A receiver of `before_task_publish` does not change the queue in the row."""
    watcher = before_task_publish.connect(lambda **_: None, weak=False)
    turns = cycle(["first", "second", "third"])
    release(make_app, evt, task_routes=(lambda *_, **__: next(turns),))
    try:
        emit(evt)
        assert in_queues() == dict.fromkeys(named_queues(), 1)
    finally:
        before_task_publish.disconnect(watcher)


@pytest.mark.parametrize(
    ("route", "queue"),
    [
        ({"exchange": "shop", "routing_key": "mail.new.now"}, "mail"),
        ({"exchange": "shop", "routing_key": "paid.bill"}, "bills"),
        ({"queue": "bills", "routing_key": "paid.bill"}, "bills"),
        ({"queue": "bills", "exchange": "shop", "routing_key": "mail.new"}, "mail"),
        ({"exchange": "celery", "routing_key": "celery"}, "celery"),
    ],
)
def test_an_exchange_leads_to_the_queue_that_is_bound_to_it(
    make_app: MakeApp, evt: Event, route: dict[str, str], queue: str
) -> None:
    """A message to an exchange goes to the queue that the app binds to it, even if the route names another queue."""
    app = release(make_app, evt, task_routes={"shop.*": route}, task_queues=TOPICS)
    with app.connection_for_write() as connection:
        for each in app.amqp.queues.values():
            each(connection.default_channel).declare()
    emit(evt)
    assert named_queues() == [queue]
    assert in_queues() == {queue: 1}


def test_a_queue_may_have_several_bindings(make_app: MakeApp, evt: Event) -> None:
    """Each binding of a queue leads to it."""
    direct = Exchange("direct", type="direct")
    several = Queue("several", [binding(direct, routing_key="one"), binding(direct, routing_key="two")])
    release(make_app, evt, {"exchange": "direct", "routing_key": "two"}, task_queues=[Queue("celery"), several])
    emit(evt)
    assert named_queues() == ["several"]


@pytest.mark.parametrize(
    "conf",
    [
        {"task_routes": {"shop.*": {"exchange": "theirs", "routing_key": "k"}}},
        {"task_routes": {"shop.*": {"queue": "all"}}, "task_queues": [Queue("celery"), Broadcast("all")]},
    ],
    ids=["unknown", "broadcast"],
)
def test_queues_that_the_app_does_not_have_are_not_taken_for_empty(
    make_app: MakeApp, evt: Event, conf: dict[str, Any]
) -> None:
    """A message in a queue that the app does not declare counts as lost only after the longest lease."""
    release(make_app, evt, **conf)

    def probe_empty(queues: Iterable[str]) -> Mapping[str, int]:
        return dict.fromkeys(queues, 0)

    emit(evt)
    drain_publisher()
    outbox.age(outbox.MAX_LEASE_SECONDS - 60)
    assert outbox.requeue_lost(probe_empty) == 0
    outbox.age(120)
    assert outbox.requeue_lost(probe_empty) == 1


def test_a_queue_that_is_gone_is_left_to_the_routes(
    make_app: MakeApp, evt: Event, caplog: pytest.LogCaptureFixture
) -> None:
    """A message for a queue that the release no longer has is published by the current routes."""
    release(make_app, evt, {"queue": "gone", "countdown": 3600})
    emit(evt)
    outbox.age(3600)
    later = bind(make_app(task_create_missing_queues=False, task_queues=[Queue("celery")]))
    assert outbox.Relay(later).step() == 1
    assert in_queues() == {"celery": 1}
    assert named_queues() == ["celery"]
    assert "has no gone any more" in caplog.text


def test_a_route_that_fails_keeps_no_other_from_leaving(make_app: MakeApp, evt: Event) -> None:
    """A failing route affects its own delivery, which keeps the error and is retried."""
    release(make_app, evt, {"countdown": 3600})
    on(evt, offload={"countdown": 3600}, name="shop.b")(lambda sender: None)
    emit(evt)
    outbox.age(3600)
    later = make_app(
        task_create_missing_queues=False, task_queues=[Queue("celery")], task_routes={HANDLER: {"queue": "missing"}}
    )
    assert outbox.Relay(bind(later)).step() == 1
    failed, queued = sorted(outbox.deliveries(), key=lambda entry: entry.handler)
    assert (failed.state, queued.state) == ("waiting", "queued")
    assert "missing" in str(failed.error)


def test_a_queue_of_the_handler_stays_with_the_delivery(make_app: MakeApp, evt: Event) -> None:
    """A delivery keeps the handler's queue of its emit after the handler's `queue=` has changed."""
    app = release(make_app, evt, {"queue": "before"})
    emit(evt)
    evt.disconnect(handle)
    on(evt, offload={"queue": "after"}, name=HANDLER)(handle)
    emit(evt)
    outbox.age(90)
    assert outbox.Relay(app).step() == 0
    assert in_queues() == dict.fromkeys(named_queues(), 1)


def test_a_worker_of_another_app_relays_to_the_broker_of_the_bound_one(
    make_app: MakeApp, evt: Event, work: Callable[..., Any]
) -> None:
    """A worker of another app publishes rows through the bound app, while it runs its own tasks."""
    release(make_app, evt, {"countdown": 0.01}, task_default_queue="mine")
    work(make_app(task_default_queue="others"))
    emit(evt)
    until(lambda: states() == ["queued"])
    assert {entry.queue for entry in outbox.deliveries()} == {"mine"}


def states() -> list[str]:
    """Returns the states of all deliveries."""
    return [entry.state for entry in outbox.deliveries()]
