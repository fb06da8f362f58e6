"""Publishing on the emitter's thread: only if it neither waits for the broker nor runs user code."""

from __future__ import annotations

import json
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded
from kombu import Exchange, Queue
from redis import Redis
from redis.connection import Connection

from nitro.errors import DispatchError
from nitro.infrastructure.events import Emission, Event, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.envelope import ENVELOPE_KEY, TaskMessage
from nitro.infrastructure.offload.publishing import connection, redis
from nitro.infrastructure.offload.publishing.publisher import ANSWER_SECONDS, Publisher, publisher
from nitro.infrastructure.outbox import operations
from support.brokers import DATABASE, on_server
from support.waiting import until

pytestmark = pytest.mark.server

PATIENCE = 20.0
PER_MESSAGE = {"id", "root_id", "correlation_id", "delivery_tag"}


@pytest.fixture
def server(offloading: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """An empty database of a real Redis, with long time-outs for a busy machine."""
    monkeypatch.setattr(sys.modules[Publisher.__module__], "ANSWER_SECONDS", PATIENCE)
    monkeypatch.setattr(connection, "IDLE_SECONDS", PATIENCE)
    monkeypatch.setattr(redis, "RENEWAL_SECONDS", PATIENCE)
    on_server("redis")
    with Redis(db=DATABASE) as server:
        server.flushdb()
        yield server
        assert publisher.drain(PATIENCE)
        server.flushdb()


def offloaded(evt: Event, name: str = "shop.a", **options: Any) -> None:
    """Connects an offloaded handler, untracked by default."""
    on(evt, offload={"delivery": "broker", **options}, name=name)(lambda sender, **kwargs: None)


def emit_alone(evt: Event) -> None:
    """Emits and waits until the publisher thread is idle, so that it leaves the next message to the emitter."""
    emit(evt)
    assert publisher.drain(PATIENCE)


def messages_in(server: Redis, key: str = "celery") -> list[Any]:
    """Returns the messages in a list, the first one first."""
    raw: Any = server.lrange(key, 0, -1)
    return [json.loads(text) for text in reversed(raw)]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that push messages into Redis."""
    names: list[str] = []
    send = Connection.send_packed_command

    def noted(self: Any, command: Any, check_health: bool = True) -> None:
        if b"LPUSH" in b"".join(command):
            names.append(threading.current_thread().name)
        send(self, command, check_health=check_health)

    monkeypatch.setattr(Connection, "send_packed_command", noted)
    return names


EMITTER = threading.main_thread().name
PUBLISHER = "nitro-publisher"


def test_a_broker_that_is_known_to_be_there_is_told_by_the_emitter(
    evt: Event, server: Redis, threads: list[str]
) -> None:
    """The emitter publishes from the second emit on; the publisher thread connects and sends the first message."""
    offloaded(evt)
    emissions = [emit(evt, number) for number in range(3)]
    assert threads == [PUBLISHER, EMITTER, EMITTER]
    assert [message["headers"]["id"] for message in messages_in(server)] == [
        emission.offloaded["shop.a"] for emission in emissions
    ]


def _listen(**_signal: Any) -> None: ...


@pytest.mark.parametrize("why", ["tracked", "watched", "large", "new handler", "busy"])
def test_whatever_could_keep_it_waiting_is_left_to_the_publisher_thread(
    evt: Event, server: Redis, threads: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher thread sends tracked, watched, large and first messages, and all while it is not ready."""
    offloaded(evt, delivery="at-least-once" if why == "tracked" else "broker")
    emit(evt, "ada")
    if why == "watched":
        signals.before_task_publish.connect(_listen)
    elif why == "new handler":
        offloaded(evt, "shop.b")
    elif why == "busy":
        monkeypatch.setattr(publisher, "_failures", 1)
    try:
        emit(evt, "x" * (40_000 if why == "large" else 3))
        assert publisher.drain(PATIENCE)
    finally:
        signals.before_task_publish.disconnect(_listen)
    assert set(threads) == {PUBLISHER}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": 7, "headers": {"tenant": 'tä"1'}},
        {"ignore_result": True, "time_limit": 9, "delivery_mode": 1},
        {"compression": "zlib"},
        {"queue": "expiring"},
    ],
    ids=["nothing", "priority", "task", "compression", "expiring"],
)
@pytest.mark.parametrize("prefix", ["", "shop:"])
def test_redis_gets_what_kombu_would_give_it(
    evt: Event, server: Redis, options: dict[str, Any], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key has kombu's messages, but for the facts of a single one, and kombu's time to live."""
    app = Celery("shop", broker=f"redis://127.0.0.1:6379/{DATABASE}", set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": prefix}
    app.conf.task_queues = [Queue("celery"), Queue("expiring", expires=600)]
    bind(app)
    offloaded(evt, **options)
    keys: list[dict[str, Any]] = []
    for emitting in (emit, emit, _emit_by_celery):
        emission = emitting(evt, "ädä", text='"quoted"')
        assert publisher.drain(PATIENCE)
        keys.append(_take_messages(server, emission))
    first, templated, by_celery = keys
    assert templated == by_celery == first
    assert any(value for key, value in first.items() if not key.startswith("_kombu"))


def _emit_by_celery(evt: Event, *args: Any, **kwargs: Any) -> Emission:
    """Emits with a subscriber of Celery's signal, so that Celery makes the messages."""
    signals.before_task_publish.connect(_listen)
    try:
        return emit(evt, *args, **kwargs)
    finally:
        signals.before_task_publish.disconnect(_listen)


def _take_messages(server: Redis, emission: Emission) -> dict[str, Any]:
    """Returns and deletes the messages by key, without single facts, with whether the key expires."""
    messages: dict[str, Any] = {}
    keys: Any = server.keys()
    for key in map(bytes.decode, keys):
        if server.type(key) == b"list":
            messages[key] = [_common(message) for message in messages_in(server, key)], server.pttl(key) != -1
            assert emission.offloaded["shop.a"] in str(messages_in(server, key))
            server.delete(key)
    return messages


def _common(message: dict[str, Any]) -> dict[str, Any]:
    message["headers"]["kwargsrepr"] = message["headers"]["kwargsrepr"].partition("'emission'")[0]
    for name in ("argsrepr", "kwargsrepr"):  # Celery copies them from the headers
        message["properties"].pop(name, None)
    for part in ("headers", "properties"):
        message[part] = {name: None if name in PER_MESSAGE else fact for name, fact in message[part].items()}
    packed = "compression" in message["headers"]
    body: Any = None if packed else json.loads(b64decode(message["body"]))
    if body is not None:
        body[1][ENVELOPE_KEY].pop("emission")
    return {**message, "body": body}


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event; until it is set, Redis takes commands and its answers are not seen."""
    answered, read = threading.Event(), Connection.read_response

    def wait_and_read(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert answered.wait(PATIENCE)
        return read(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[Publisher.__module__], "ANSWER_SECONDS", ANSWER_SECONDS)
        patched.setattr(Connection, "can_read", lambda self, timeout=0: timeout > 0 and answered.is_set())
        patched.setattr(Connection, "read_response", wait_and_read)
        yield answered
        answered.set()
        assert publisher.drain(PATIENCE)


def test_an_answer_that_does_not_come_is_left_to_the_publisher_thread(
    evt: Event, server: Redis, request: pytest.FixtureRequest, threads: list[str]
) -> None:
    """A message without an answer is stored, because it may run twice; the connection is used on after the answer."""
    offloaded(evt)
    emit_alone(evt)
    answered = request.getfixturevalue("silent")
    emission = emit(evt)
    assert not answered.is_set()
    assert threads == [PUBLISHER, EMITTER]
    assert [entry.id for entry in operations.read_deliveries()] == list(emission.offloaded.values())
    answered.set()
    assert publisher.drain(PATIENCE)
    later = emit(evt)
    assert later.offloaded["shop.a"] in str(messages_in(server))


def test_what_overtakes_an_unanswered_message_leaves_it_as_it_is(
    evt: Event, server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emit of another thread in the meantime sends nothing twice and leaks no connection."""
    offloaded(evt, broker_down="raise")
    emit_alone(evt)

    def emit_too() -> None:
        with suppress(DispatchError):  # raised after too long a wait
            emit(evt)

    can_read, emitter, others = Connection.can_read, threading.current_thread(), list[threading.Thread]()

    def late(self: Any, timeout: float = 0) -> bool:
        if not timeout or threading.current_thread() is not emitter:
            return can_read(self, timeout)
        other = threading.Thread(target=emit_too)
        others.append(other)
        other.start()
        until(lambda: publisher._queue.busy_seconds())
        return False

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[Publisher.__module__], "ANSWER_SECONDS", ANSWER_SECONDS)
        patched.setattr(Connection, "can_read", late)
        emit_too()
    others[0].join(PATIENCE)
    assert publisher.drain(PATIENCE)
    ids = [message["headers"]["id"] for message in messages_in(server)]
    assert len(ids) == len(set(ids)) >= 2
    assert publisher._connection is not None
    pipeline: Any = publisher._connection._channels[False]._buffer
    assert pipeline._pool._in_use_connections == {pipeline._connection}


def test_no_name_stands_twice_in_a_message(evt: Event, server: Redis) -> None:
    """No JSON object of a message has a key twice, because readers differ in the one that they use."""
    offloaded(evt, headers={"tenant": "t1"})
    for _ in range(2):
        emit(evt)
    pairs = list[list[tuple[str, Any]]]()
    raw: Any = server.lrange("celery", 0, 0)
    json.loads(raw[0], object_pairs_hook=lambda items: pairs.append(items) or dict(items))
    assert pairs
    assert all(len(dict(items)) == len(items) for items in pairs)


def test_a_queue_behind_a_topic_is_asked_for_by_the_publisher_thread(
    evt: Event, server: Redis, threads: list[str]
) -> None:
    """The publisher thread sends to a topic exchange, because kombu asks Redis for its bindings."""
    app = Celery("shop", broker=f"redis://127.0.0.1:6379/{DATABASE}", set_as_current=False)
    app.conf.task_queues = [Queue("celery", Exchange("shop", type="topic"), routing_key="#")]
    bind(app)
    offloaded(evt)
    for _ in range(3):
        emit(evt)
    assert threads == [PUBLISHER] * 3


def test_at_most_once_is_never_stored_when_it_may_have_left(
    evt: Event, server: Redis, request: pytest.FixtureRequest
) -> None:
    """An at-most-once message without an answer raises and is not stored."""
    offloaded(evt, delivery="at-most-once")
    emit_alone(evt)
    request.getfixturevalue("silent")
    with pytest.raises(DispatchError, match=r"shop\.a"):
        emit(evt)
    assert list(operations.read_deliveries()) == []


def test_what_the_broker_refuses_is_told_by_the_publisher_thread(evt: Event, server: Redis, threads: list[str]) -> None:
    """The publisher thread tries a refused message once more by itself, and the emit raises its error."""
    offloaded(evt, queue="wrong", broker_down="raise")
    emit_alone(evt)
    server.delete("wrong")
    server.set("wrong", "no list")
    with pytest.raises(DispatchError, match="WRONGTYPE"):
        emit(evt)
    assert threads == [PUBLISHER, EMITTER, PUBLISHER]
    server.delete("wrong")
    emit(evt)
    assert len(messages_in(server, "wrong")) == 1


def test_a_time_limit_that_ends_an_emit_is_raised_by_it(
    evt: Event, server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A soft time limit is raised, and the next emit does not read the earlier answer as its own."""
    offloaded(evt)
    emit_alone(evt)

    def over(self: Any, timeout: float = 0) -> bool:
        if timeout == 0:
            return False
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "can_read", over)
        with pytest.raises(SoftTimeLimitExceeded):
            emit(evt)
    emission = emit(evt)
    assert emission.offloaded["shop.a"] in str(messages_in(server))


def test_an_emit_within_another_ones_publishing_waits_its_turn(
    evt: Event, server: Redis, threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emit during another one's publishing, as in a signal handler, loses neither message."""
    offloaded(evt)
    emit_alone(evt)
    can_read, inner = Connection.can_read, list[Emission]()

    def interrupted(self: Any, timeout: float = 0) -> bool:
        if timeout and not inner:
            inner.append(Emission.of(""))
            inner[0] = emit(evt)
        return can_read(self, timeout)

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[Publisher.__module__], "ANSWER_SECONDS", ANSWER_SECONDS)
        patched.setattr(Connection, "can_read", interrupted)
        outer = emit(evt)
    assert threads[:2] == [PUBLISHER, EMITTER]
    ids = {message["headers"]["id"] for message in messages_in(server)} | {
        entry.id for entry in operations.read_deliveries()
    }
    assert {outer.offloaded["shop.a"], inner[0].offloaded["shop.a"]} <= ids


def test_rabbitmq_gets_an_unconfirmed_message_from_the_emitter(
    evt: Event, offloading: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unconfirmed message to RabbitMQ is sent by the emitter, because no answer is waited for."""
    app = on_server("amqp")
    offloaded(evt, "shop.a", delivery="at-most-once", queue="nitro-here")
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        emit(evt)
        monkeypatch.setattr(TaskMessage, "publish", lambda *args, **kwargs: pytest.fail("made by Celery"))
        monkeypatch.setattr(publisher, "enqueue", lambda *args, **kwargs: pytest.fail("left to the publisher thread"))
        emit(evt)
        until(lambda: channel.queue_declare("nitro-here", passive=True).message_count == 2)
        channel.queue_delete("nitro-here")


def test_a_time_limit_ends_an_emit_over_the_embedded_broker_too(
    evt: Event, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A soft time limit during an emit is raised, and is no failure of the message."""
    offloaded(evt)
    emit_alone(evt)

    def over(*args: Any, **kwargs: Any) -> None:
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patched:
        patched.setattr("kombu.transport.memory.Channel._put", over)
        with pytest.raises(SoftTimeLimitExceeded):
            emit(evt)
    emit(evt)
