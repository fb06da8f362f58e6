"""A message from a template equals the message that Celery would make; otherwise Celery makes it."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.app.amqp import AMQP
from kombu import Queue
from kombu.serialization import registry
from kombu.utils.json import dumps as kombus_json

from nitro.infrastructure.events import Emission, Event, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.envelope import TaskMessage

Sent = Callable[..., list[Any]]

PER_MESSAGE = {"id", "root_id", "parent_id", "argsrepr", "kwargsrepr", "correlation_id", "delivery_tag"}


def receive(sender: Any, *args: Any, **kwargs: Any) -> None: ...


def offloaded(evt: Event, name: str = "shop.a", **options: Any) -> None:
    """Connects an offloaded handler, untracked unless `delivery` is passed."""
    on(evt, offload={"delivery": "broker", **options}, name=name)(FunctionType(receive.__code__, globals(), name))


@pytest.fixture
def by_celery(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the handlers whose messages Celery made."""
    names: list[str] = []
    publish = TaskMessage.publish

    def record_and_publish(self: TaskMessage, *args: Any, **kwargs: Any) -> None:
        names.append(self.handler)
        publish(self, *args, **kwargs)

    monkeypatch.setattr(TaskMessage, "publish", record_and_publish)
    return names


def emit_with_receiver(evt: Event, *args: Any, **kwargs: Any) -> Emission:
    """Emits while a receiver of `before_task_publish` is connected, so that Celery makes the messages."""

    def watch(**_signal: Any) -> None: ...

    signals.before_task_publish.connect(watch)
    try:
        return emit(evt, *args, **kwargs)
    finally:
        signals.before_task_publish.disconnect(watch)


@pytest.mark.parametrize("delivery", ["at-most-once", "broker", "at-least-once"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": 7, "headers": {"tenant": "t1"}, "compression": "zlib"},
        {"ignore_result": True, "time_limit": 9, "soft_time_limit": 8, "max_retries": 1},
        {"entity": "reload", "delivery_mode": 1, "serializer": "json"},
    ],
    ids=["nothing", "message", "task", "more"],
)
def test_it_is_what_celery_would_make(
    evt: Event, app: Celery, sent: Sent, by_celery: list[str], delivery: str, options: dict[str, Any]
) -> None:
    """Headers, properties and body equal Celery's, except for the facts of the single message."""
    offloaded(evt, **{**options, "delivery": delivery})
    emit(evt, "ada", amount=3)
    emit(evt, "ada", amount=3)
    emissions = [emit_with_receiver(evt, "ada", amount=3)]
    first, templated, reference = sent()
    assert by_celery == ["shop.a", "shop.a"], "the second one came from the template"
    for message in (first, templated):
        assert _common(message.headers) == _common(reference.headers)
        assert message.headers.keys() == reference.headers.keys()
        assert _common(message.properties) == _common(reference.properties)
        unread = {"argsrepr", "kwargsrepr"}  # Celery leaves them in the properties, where nothing reads them
        assert message.properties.keys() | unread == reference.properties.keys() | unread
        assert (message.args, message.embed) == (reference.args, reference.embed)
        assert message.payload == reference.payload
    assert reference.headers["id"] == emissions[0].offloaded["shop.a"]


def _common(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in PER_MESSAGE}


def test_each_message_has_its_own_facts(evt: Event, app: Celery, sent: Sent, by_celery: list[str]) -> None:
    """Each message has its own ids and its own text for monitoring."""
    offloaded(evt)
    emissions = [emit(evt, name) for name in ("ada", "grace", "ada")]
    messages = sent()
    assert by_celery == ["shop.a"]
    ids = [emission.offloaded["shop.a"] for emission in emissions]
    assert [message.headers["id"] for message in messages] == ids
    assert [message.headers["root_id"] for message in messages] == ids
    assert [message.properties["correlation_id"] for message in messages] == ids
    for message, emission in zip(messages, emissions, strict=True):
        assert emission.id in message.headers["kwargsrepr"]
    assert [message.payload.sender for message in messages] == ["ada", "grace", "ada"]


def test_one_body_for_all_handlers_of_an_emission(
    evt: Event, app: Celery, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body of an emission is serialised once for all of its handlers."""
    from nitro.infrastructure.offload.publishing import templates

    bodies: list[Any] = []
    serialize_body = templates._serialize_body

    def counted(*body: Any) -> Any:
        bodies.append(body)
        return serialize_body(*body)

    monkeypatch.setattr(templates, "_serialize_body", counted)
    for name in ("shop.a", "shop.b", "shop.c"):
        offloaded(evt, name)
    emit(evt, "ada")
    emit(evt, "grace")
    assert len(sent()) == 6
    assert len(bodies) == 1


def test_a_serializer_of_the_users_own_writes_each_body(
    evt: Event, app: Celery, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A serializer that the user registers under the name of kombu's JSON serialises each body."""
    serialized: list[Any] = []

    def own(body: Any) -> str:
        serialized.append(body)
        return str(kombus_json(body))

    encoder = registry._encoders["json"]
    monkeypatch.setitem(registry._encoders, "json", encoder._replace(encoder=own))
    offloaded(evt)
    emit(evt, "ada")
    emit(evt, "grace")
    assert [message.payload.sender for message in sent()] == ["ada", "grace"]
    assert len(serialized) == 2


def test_each_handler_gets_its_own_signature(
    evt: Event, app: Celery, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signed body is made for a single handler."""
    monkeypatch.setenv("NITRO_SIGNING_KEY", "secret")
    offloaded(evt, "shop.a")
    offloaded(evt, "shop.b")
    emit(evt, "ada")
    emit(evt, "ada")
    signatures = {message.kwargs["__nitro__"]["signature"] for message in sent()}
    assert len(signatures) == 4


def test_options_of_two_registrations_do_not_mix(evt: Event, app: Celery, sent: Sent) -> None:
    """A function that hears two events may have different message options for each."""
    other = Event("other")
    on(evt, offload={"delivery": "broker", "priority": 1}, name="shop.a")(receive)
    on(other, offload={"delivery": "broker", "priority": 2}, name="shop.a")(receive)
    for event in (evt, other, evt, other):
        emit(event, "ada")
    assert [message.properties["priority"] for message in sent()] == [1, 2, 1, 2]


def test_routes_by_name_have_templates(evt: Event, make_app: Any, by_celery: list[str]) -> None:
    """A route by name gives all messages of a handler the same queue, so that a template can make them."""
    app = bind(make_app(task_routes={"shop.mail.*": {"queue": "mail"}}))
    offloaded(evt, "shop.mail.send")
    for _ in range(3):
        emit(evt, "ada")
    with app.connection_for_read() as connection:
        assert connection.default_channel._size("mail") == 3
    assert len(by_celery) == 1


def test_task_sent_events_come_from_the_template_too(evt: Event, make_app: Any, by_celery: list[str]) -> None:
    """Task-sent events from a template equal Celery's; changing the setting takes effect at the next emit."""
    app = bind(make_app(task_send_sent_event=True))
    offloaded(evt)
    with app.connection_for_read() as connection:
        queue = app.events.Receiver(connection).queue(connection.default_channel)
        queue.declare()
        emissions = [emit(evt, "ada"), emit(evt, "ada"), emit_with_receiver(evt, "ada")]
        app.conf.task_send_sent_event = False
        emit(evt, "ada")
        events = [message.payload for message in iter(lambda: queue.get(no_ack=True), None)]
    ids = [emission.offloaded["shop.a"] for emission in emissions]
    assert [event["uuid"] for event in events] == ids
    assert [event["root_id"] for event in events] == ids
    for event, emission in zip(events, emissions, strict=True):
        assert emission.id in event["kwargs"]
    own = {"uuid", "root_id", "kwargs", "clock", "timestamp"}
    facts = [{name: value for name, value in event.items() if name not in own} for event in events]
    assert facts[0] == facts[1] == facts[2]
    assert by_celery == ["shop.a"] * 3, "the first, the one with a receiver, and the first without an event"


class OwnTask(Task):  # type: ignore[type-arg]  # generic only in the stubs
    """A task class that overrides `apply_async`."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return super().apply_async(args, kwargs, **{**options, "priority": 9})


class OwnShadow(Task):  # type: ignore[type-arg]  # the same
    """A task class that overrides `shadow_name`."""

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
        return f"shadow of {self.name}"


class OwnCelery(Celery):
    """An app class that overrides `send_task`."""

    def send_task(self, *args: Any, **options: Any) -> Any:
        return super().send_task(*args, **{**options, "priority": 9})


class OwnAMQP(AMQP):
    """An AMQP class that overrides `as_task_v2`."""

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        message = super().as_task_v2(*args, **options)
        message.headers["own"] = True
        return message


def route_by_arguments(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **more: Any) -> Any:
    """Routes by the arguments of each message."""
    return {"queue": "celery", "priority": 9}


def annotated(self: Any, *args: Any, **options: Any) -> Any:
    """Replaces `apply_async` by an annotation."""
    return super(type(self), self).apply_async(*args, **{**options, "priority": 9})


@pytest.mark.parametrize(
    "conf",
    [
        {"task_cls": OwnTask},
        {"task_cls": OwnShadow},
        {"task_routes": [route_by_arguments]},
        {"task_routes": ({"x": "y"}, "unit.publishing.test_offload_template.route_by_arguments")},
        {"task_annotations": {"shop.a": {"apply_async": annotated}}},
        {"result_backend": "rpc://"},
    ],
    ids=["task_cls", "shadow", "route", "route-by-name", "annotation", "rpc"],
)
def test_what_is_made_in_a_way_of_its_own_is_left_to_celery(
    evt: Event, make_app: Any, by_celery: list[str], conf: dict[str, Any]
) -> None:
    """Celery makes each message through `apply_async` when the app's configuration overrides how messages are made."""
    bind(make_app(**conf))
    offloaded(evt)
    for _ in range(3):
        emit(evt, "ada")
    assert by_celery == ["shop.a"] * 3


@pytest.mark.parametrize("options", [{"countdown": 60}, {"expires": 60}, {"headers": {"list": ["unhashable"]}}])
def test_a_message_that_a_template_cannot_make_is_left_to_celery(
    evt: Event, app: Celery, by_celery: list[str], options: dict[str, Any]
) -> None:
    """Celery makes each message with a countdown, an expiry or unhashable headers, because a template cannot."""
    offloaded(evt, **options)
    for _ in range(3):
        emit(evt, "ada")
    assert by_celery == ["shop.a"] * 3


@pytest.mark.parametrize("signal", ["before_task_publish", "after_task_publish", "task_sent"])
def test_a_receiver_of_a_signal_hears_each_message(evt: Event, app: Celery, sent: Sent, signal: str) -> None:
    """A receiver of a publish signal hears each message, even if it connects after the first emit."""
    offloaded(evt)
    emit(evt, "ada")
    emit(evt, "ada")
    heard = []

    def hear(sender: Any, **_facts: Any) -> None:
        heard.append(sender)

    getattr(signals, signal).connect(hear)
    try:
        emit(evt, "ada")
        emit(evt, "ada")
    finally:
        getattr(signals, signal).disconnect(hear)
    emit(evt, "ada")
    assert heard == ["shop.a"] * 2
    assert len(sent()) == 5


@pytest.mark.parametrize("place", [Celery, Task])
def test_a_patched_celery_is_called_each_time(
    evt: Event, app: Celery, by_celery: list[str], monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    """A patch of Celery's `apply_async` or `send_task`, as tracing libraries make it, is called for each message."""
    name = "send_task" if place is Celery else "apply_async"
    original, seen = getattr(place, name), []

    def traced(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(place, name, traced)
    offloaded(evt)
    for _ in range(3):
        emit(evt, "ada")
    assert len(seen) == 3


@pytest.mark.parametrize("own", [{"main": OwnCelery}, {"amqp": OwnAMQP}], ids=["app", "amqp"])
def test_an_app_of_its_own_class_makes_each_message(
    evt: Event, make_app: Any, by_celery: list[str], own: dict[str, Any]
) -> None:
    """An app of a user's class makes each message itself."""
    conf = {"broker_url": "memory://", "result_backend": "cache+memory://"}
    app = bind(own.get("main", Celery)("own", set_as_current=False, amqp=own.get("amqp")))
    app.conf.update(conf)
    offloaded(evt)
    for _ in range(3):
        emit(evt, "ada")
    assert by_celery == ["shop.a"] * 3


def test_a_redefined_handler_has_a_template_of_its_own(evt: Event, app: Celery, sent: Sent) -> None:
    """A redefined handler gets a new template, because its options may have changed."""
    offloaded(evt, ignore_result=False)
    emit(evt, "ada")
    emit(evt, "ada")
    code = "def receive(sender, **kwargs): ..."
    scope: dict[str, Any] = {"__name__": receive.__module__}
    exec(compile(code, receive.__code__.co_filename, "exec"), scope)
    on(evt, offload={"delivery": "broker", "ignore_result": True}, name="shop.a")(scope["receive"])
    emit(evt, "ada")
    emit(evt, "ada")
    assert [message.headers["ignore_result"] for message in sent()] == [False, False, True, True]


def test_a_queue_object_is_told_from_another(evt: Event, app: Celery, sent: Sent) -> None:
    """Queue objects with different contents get different templates."""
    offloaded(evt, "shop.a", queue=Queue("first", routing_key="first"))
    offloaded(evt, "shop.b", queue=Queue("second", routing_key="second"))
    for _ in range(2):
        emit(evt, "ada")
    assert [[message.name for message in sent(queue)] for queue in ("first", "second")] == [
        ["shop.a"] * 2,
        ["shop.b"] * 2,
    ]
