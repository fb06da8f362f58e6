"""Messages to RabbitMQ: equal to Celery's, in as few writes as possible."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import amqp
import pytest
from amqp.transport import TCPTransport
from celery import Celery, signals

from nitro.errors import DispatchError
from nitro.infrastructure.events import Emission, Event, emit, on
from nitro.infrastructure.offload.envelope import ENVELOPE_KEY, TaskMessage
from nitro.infrastructure.offload.publishing.channel import PublisherConfirms
from nitro.infrastructure.offload.publishing.frames import MAX_BUFFERED_BYTES, Frames, frames_of
from nitro.infrastructure.offload.publishing.publisher import publisher
from support.brokers import on_server
from support.waiting import until

pytestmark = pytest.mark.server

PATIENCE = 20.0
QUEUE = f"nitro-frames-{os.getpid()}"
PER_MESSAGE = {"id", "root_id", "correlation_id", "kwargsrepr"}


@pytest.fixture
def server(offloading: None, patient: None) -> Celery:
    """An app on a real RabbitMQ."""
    return on_server("amqp")


@pytest.fixture
def channel(server: Celery) -> Iterator[Any]:
    """A channel of a connection of its own; the queue is deleted at the end."""
    with server.connection_for_read() as connection:
        channel = connection.default_channel
        yield channel
        channel.queue_delete(QUEUE)


def offloaded(evt: Event, *names: str, **options: Any) -> None:
    """Connects offloaded handlers of one queue, with delivery `at-most-once` by default."""
    for name in names:
        on(evt, offload={"delivery": "at-most-once", "queue": QUEUE, **options}, name=name)(lambda sender, **kw: None)


def receive(channel: Any, count: int) -> list[Any]:
    """Returns that number of messages, the first one first."""
    until(lambda: channel.queue_declare(QUEUE, passive=True).message_count >= count)
    return [channel.message_to_python(channel.basic_get(QUEUE, no_ack=True)) for _ in range(count)]


def emit_by_celery(evt: Event, *args: Any) -> Emission:
    """Emits with a subscriber of Celery's signal, so that Celery makes the messages."""

    def watch(**_signal: Any) -> None: ...

    signals.before_task_publish.connect(watch)
    try:
        return emit(evt, *args)
    finally:
        signals.before_task_publish.disconnect(watch)


def common(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns headers or properties without the facts of a single message."""
    copied = {"argsrepr"} if "content_type" in facts else set()  # Celery copies it from the headers
    return {name: fact for name, fact in facts.items() if name not in PER_MESSAGE | copied}


@pytest.mark.parametrize("delivery", ["at-most-once", "broker"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": 7, "headers": {"tenant": 'tä"1', "part": 3}},
        {"ignore_result": True, "time_limit": 9, "delivery_mode": 1},
        {"compression": "zlib"},
    ],
    ids=["nothing", "priority", "task", "compression"],
)
def test_rabbitmq_gets_what_celery_would_give_it(
    evt: Event, channel: Any, delivery: str, options: dict[str, Any]
) -> None:
    """Headers, properties and body equal Celery's, but for the facts of a single message."""
    offloaded(evt, "shop.a", delivery=delivery, **options)
    emissions = [emitting(evt, "ädä") for emitting in (emit, emit, emit_by_celery)]
    assert publisher.drain(PATIENCE)
    messages = receive(channel, 3)
    first, templated, by_celery = messages
    for one, other in ((first, by_celery), (templated, by_celery)):
        assert common(one.headers) == common(other.headers)
        assert common(one.properties | {"application_headers": None}) == common(
            other.properties | {"application_headers": None}
        )
        assert one.headers.keys() == other.headers.keys()
    for message, emission in zip(messages, emissions, strict=True):
        assert message.properties["correlation_id"] == message.headers["id"] == emission.offloaded["shop.a"]
        assert emission.id in message.headers["kwargsrepr"]
        args, kwargs, embed = message.payload
        assert list(args) == []
        assert not any(embed.values())
        assert kwargs[ENVELOPE_KEY]["emission"] == emission.id


def test_the_messages_of_an_emission_are_one_write(evt: Event, channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages of an emission are one write, in the order of the handlers, and none is Celery's."""
    names = ("shop.a", "shop.b", "shop.c")
    offloaded(evt, *names)
    emit(evt)
    assert publisher.drain(PATIENCE)
    receive(channel, 3)
    writes, write = list[Any](), TCPTransport.write

    def noted(self: Any, data: Any) -> None:
        writes.append(data)
        write(self, data)

    monkeypatch.setattr(TaskMessage, "publish", lambda *args, **kwargs: pytest.fail("made by Celery"))
    with monkeypatch.context() as patched:
        patched.setattr(TCPTransport, "write", noted)
        emit(evt)
    assert len(writes) == 1
    assert [message.headers["task"] for message in receive(channel, 3)] == list(names)


@pytest.mark.parametrize("delivery", ["at-most-once", "broker"])
def test_a_message_may_be_larger_than_a_frame(evt: Event, channel: Any, delivery: str) -> None:
    """A message larger than a frame arrives whole, and so does the next one."""
    offloaded(evt, "shop.a", "shop.b", delivery=delivery)
    for text in ("first", "x" * 3 * MAX_BUFFERED_BYTES, "last"):
        emit(evt, text)
        assert publisher.drain(PATIENCE)
    payloads = [message.payload[1][ENVELOPE_KEY]["payload"] for message in receive(channel, 6)]
    assert [len(payload) > 3 * MAX_BUFFERED_BYTES for payload in payloads] == [False, False, True, True, False, False]


def test_a_queue_that_is_refused_keeps_nothing_from_leaving_that_was_published_before(evt: Event, channel: Any) -> None:
    """Gathered messages are sent before a failing declaration closes their channel."""
    channel.queue_declare(f"{QUEUE}.wrong", durable=False, auto_delete=True)
    offloaded(evt, "shop.good", priority=1)
    offloaded(evt, "shop.wrong", queue=f"{QUEUE}.wrong")
    for _ in range(2):
        with suppress(DispatchError):
            emit(evt)
        assert publisher.drain(PATIENCE)
    assert [message.headers["task"] for message in receive(channel, 2)] == ["shop.good"] * 2
    channel.queue_delete(f"{QUEUE}.wrong")


def test_what_was_dropped_is_not_waited_for(channel: Any) -> None:
    """A dropped message is not waited for, and confirms of later messages are counted correctly."""
    channel.queue_declare(QUEUE)
    with channel.connection.client.clone() as connection:
        publishing = connection.channel()
        frames = frames_of(publishing)
        assert frames is not None
        confirms = PublisherConfirms(publishing)
        for task_id in ("dropped", "kept"):
            publishing.basic_publish(amqp.Message("x", correlation_id=task_id), "", QUEUE)
            if task_id == "dropped":
                confirms.drop(frames.discard())
        frames.flush()
        confirms.wait(PATIENCE)
    assert confirms.confirmed == {"kept"}
    assert len(receive(channel, 1)) == 1


def test_a_closed_channel_is_an_error_of_the_connection(channel: Any) -> None:
    """A closed channel raises a connection error, and is not replaced silently."""
    with channel.connection.client.clone() as connection:
        publishing = connection.channel()
        frames = Frames(publishing)
        publishing.basic_publish(amqp.Message("x"), "", QUEUE)
        publishing.collect()
        with pytest.raises(amqp.RecoverableConnectionError):
            frames.flush()


def test_a_channel_that_waits_for_each_message_is_left_alone(server: Celery) -> None:
    """Frames are not used with kombu's `confirm_publish`, where each message is waited for."""
    with server.connection_for_write(transport_options={"confirm_publish": True}) as connection:
        assert frames_of(connection.channel()) is None
