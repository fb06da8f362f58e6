"""Round trips to a real broker, and a broker that is away: contract sections 1 and 7."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task
from kombu.exceptions import OperationalError
from redis import Redis
from redis.connection import Connection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError

from nitro.errors import DispatchError, NoDatabase, PayloadError
from nitro.infrastructure.events import Event, Namespace, emit, emit_async, on
from nitro.infrastructure.offload import bind
from support import faults
from support.broker import drain_publisher, is_publishing, is_ready
from support.brokers import DATABASE, bound, on_server
from support.outbox import deliveries, states
from support.waiting import until

PATIENCE = 20.0
UNTRACKED = ("broker", "at-most-once")


def offloaded(evt: Event, *names: str, **options: Any) -> None:
    """Connects an offloaded handler of each name."""
    for name in names:
        on(evt, offload=options or True, name=name)(lambda sender: None)


@pytest.fixture
def redis_app(offloading: None) -> Iterator[Celery]:
    """A bound app on an empty database of a real Redis; the test is skipped without a server."""
    server = Redis(db=DATABASE, socket_connect_timeout=2)
    try:
        server.flushdb()
    except RedisError as error:
        if os.environ.get("NITRO_TEST_SERVERS") == "required":
            raise
        pytest.skip(f"MISSING SERVER: Redis does not answer at 127.0.0.1:6379: {error}")
    yield bound(f"redis://127.0.0.1:6379/{DATABASE}")
    server.flushdb()
    server.close()


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Commands that are sent to Redis, an item for each send."""
    trips: list[bytes] = []
    send = Connection.send_packed_command

    def counted(self: Any, command: Any, check_health: bool = True) -> None:
        trips.append(command if isinstance(command, bytes) else b"".join(command))
        send(self, command, check_health=check_health)

    monkeypatch.setattr(Connection, "send_packed_command", counted)
    return trips


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    """A port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.server
@pytest.mark.parametrize("handlers", [1, 5])
@pytest.mark.parametrize("delivery", ["at-least-once", "broker"])
def test_emission_is_one_round_trip_to_redis(
    evt: Event, redis_app: Celery, round_trips: list[bytes], handlers: int, delivery: str
) -> None:
    """All messages of an emission are one command to Redis."""
    offloaded(evt, *(f"shop.{number}" for number in range(handlers)), delivery=delivery)
    emit(evt)
    drain_publisher()
    round_trips.clear()
    emission = emit(evt)
    drain_publisher()
    carrying = [trip for trip in round_trips if b"LPUSH" in trip]
    assert len(carrying) == 1
    assert carrying[0].count(b"LPUSH") == 1
    assert all(task_id.encode() in carrying[0] for task_id in emission.offloaded.values())
    assert len(emission.offloaded) == handlers


@pytest.mark.server
def test_redis_gets_all_messages(evt: Event, redis_app: Celery, patient: None) -> None:
    """Redis gets all messages of a batch in the order of the handlers."""
    offloaded(evt, "shop.a", "shop.b", "shop.c")
    emit(evt)
    asyncio.run(emit_async(evt))
    drain_publisher()
    with redis_app.connection_for_read() as connection:
        channel = connection.default_channel
        assert channel._size("celery") == 6
        names = [channel.basic_get("celery", no_ack=True).headers["task"] for _ in range(6)]
    assert names == ["shop.a", "shop.b", "shop.c"] * 2


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("emitting", ["emit", "emit_async"])
@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once", *UNTRACKED])
def test_what_an_unreachable_broker_cannot_take_waits_in_the_outbox(
    evt: Event, offloading: None, closed_port: int, scheme: str, emitting: str, delivery: str
) -> None:
    """Messages for an unreachable broker are stored with every delivery, because none of them was sent."""
    bound(f"{scheme}://127.0.0.1:{closed_port}/")
    offloaded(evt, "shop.a", "shop.b", delivery=delivery)
    emission = emit(evt) if emitting == "emit" else asyncio.run(emit_async(evt))
    drain_publisher()
    until(lambda: states() == {"shop.a": "waiting", "shop.b": "waiting"})
    assert {entry.id for entry in deliveries()} == set(emission.offloaded.values())


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("delivery", UNTRACKED)
def test_broker_down_may_ask_for_the_error(
    evt: Event, offloading: None, closed_port: int, scheme: str, delivery: str
) -> None:
    """`broker_down="raise"` stores nothing; the error names each handler that was not dispatched."""
    bound(f"{scheme}://127.0.0.1:{closed_port}/")
    offloaded(evt, "shop.a", "shop.b", delivery=delivery, broker_down="raise")
    with pytest.raises(DispatchError) as caught:
        emit(evt)
    assert caught.value.handlers == ("shop.a", "shop.b")
    assert all(name in str(caught.value) for name in (evt.name, "shop.a", "shop.b"))
    assert states() == {}


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("delivery", UNTRACKED)
def test_silent_broker_is_not_waited_for(
    evt: Event, offloading: None, silent_port: int, scheme: str, delivery: str
) -> None:
    """While the connection to a silent broker hangs, the message is withdrawn and stored."""
    bound(f"{scheme}://127.0.0.1:{silent_port}/")
    offloaded(evt, "shop.a", delivery=delivery)
    emit(evt)
    assert states()["shop.a"] in ("waiting", "queued"), "a relay may have taken it already"


@pytest.mark.server
def test_what_gathers_while_the_broker_is_busy_leaves_together(
    evt: Event, redis_app: Celery, round_trips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages that gather while the broker is busy are one batch; a refused one fails alone."""
    offloaded(evt, "shop.a")
    refused = Namespace().event("refused")
    offloaded(refused, "shop.wrong", queue="wrong")
    emit(evt)
    drain_publisher()
    Redis(db=DATABASE).set("wrong", "no list")
    free = faults.hold_batches(monkeypatch)
    emit(evt)
    until(is_publishing)
    emissions = [emit(evt) for _ in range(5)]
    round_trips.clear()
    free.set()
    drain_publisher()
    assert sum(b"LPUSH" in trip for trip in round_trips) == 2, "the one that was on its way, and all others"
    sent = b"".join(round_trips)
    assert all(emission.offloaded["shop.a"].encode() in sent for emission in emissions)

    free.clear()
    emit(evt)
    until(is_publishing)
    for event in (evt, refused, evt):
        emit(event)
    free.set()
    drain_publisher()
    assert sorted((entry.handler, entry.state) for entry in deliveries()) == [
        *[("shop.a", "queued")] * 10,
        ("shop.wrong", "waiting"),
    ]


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event; until it is set, the broker accepts a message and does not answer."""
    released = faults.hang_broker(monkeypatch)
    yield released
    released.set()
    drain_publisher()


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_tracked_emit_returns_while_the_broker_hangs(
    evt: Event, app: Celery, blocked: threading.Event, delivery: str
) -> None:
    """A tracked emit waits for its row only."""
    offloaded(evt, "shop.a", delivery=delivery)
    for _ in range(3):
        emit(evt)
    assert not blocked.is_set()
    assert [entry.state for entry in deliveries()] == ["queued"] * 3


def test_unknown_outcome_of_a_broker_delivery_is_stored(evt: Event, app: Celery, blocked: threading.Event) -> None:
    """A message with delivery `broker` that may have been sent is stored, because it may run twice."""
    offloaded(evt, "shop.a", delivery="broker")
    emit(evt)
    assert not blocked.is_set()
    assert states()["shop.a"] in ("waiting", "queued")


def test_unknown_outcome_of_an_at_most_once_delivery_raises(evt: Event, app: Celery, blocked: threading.Event) -> None:
    """A message with delivery `at-most-once` that may have been sent raises, because it must not run twice."""
    offloaded(evt, "shop.a", delivery="at-most-once")
    with pytest.raises(DispatchError, match=r"shop\.a"):
        emit(evt)
    assert states() == {}


def test_what_waits_behind_a_hanging_message_is_stored(evt: Event, app: Celery, blocked: threading.Event) -> None:
    """A message behind a hanging one is stored, because it was certainly not sent."""
    second = Namespace().event("second")
    offloaded(evt, "shop.a")
    offloaded(second, "shop.b", delivery="at-most-once")
    emit(evt)
    emit(second)
    assert states()["shop.b"] in ("waiting", "queued")


def test_when_storing_fails_too_the_emit_raises(
    evt: Event, offloading: None, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of messages that were neither sent nor stored names each handler."""
    bound(f"redis://127.0.0.1:{closed_port}/")
    offloaded(evt, "shop.a", "shop.b", delivery="broker")
    faults.fail_storing(monkeypatch, OperationalError("database is away"))
    with pytest.raises(DispatchError, match="database is away") as caught:
        emit(evt)
    assert caught.value.handlers == ("shop.a", "shop.b")


@pytest.mark.server
def test_everything_leaves_when_the_broker_is_back(
    evt: Event, redis_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emitter's own relay publishes the stored messages, without a worker."""
    offloaded(evt, "shop.a", "shop.b")
    emissions = [emit(evt)]
    drain_publisher()
    with monkeypatch.context() as away:
        away.setattr(Connection, "_connect", _refuse)
        away.setattr(Connection, "send_packed_command", _break)
        emissions.append(emit(evt))
        drain_publisher()
    with redis_app.connection_for_read() as connection:
        channel = connection.default_channel
        until(lambda: channel._size("celery") >= 4, within=2 * PATIENCE)
        messages = [channel.basic_get("celery", no_ack=True) for _ in range(4)]
    task_ids = {task_id for emission in emissions for task_id in emission.offloaded.values()}
    assert {message.headers["id"] for message in messages} == task_ids


def _refuse(self: Connection) -> Any:
    raise ConnectionRefusedError("connection refused")


def _break(self: Connection, *args: Any, **kwargs: Any) -> None:
    self.disconnect()
    raise ConnectionLost("connection lost")


def test_inline_handlers_have_run_when_the_broker_is_away(evt: Event, offloading: None, closed_port: int) -> None:
    """Inline handlers have run before publishing raises."""
    bound(f"redis://127.0.0.1:{closed_port}/")
    offloaded(evt, "shop.a", delivery="broker", broker_down="raise")
    ran: list[str] = []
    evt.connect(lambda sender: ran.append("inline"))
    with pytest.raises(DispatchError):
        emit(evt)
    assert ran == ["inline"]


class Buggy(Task):
    """A task class of the user's own that cannot publish."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        raise LookupError("bug")


def test_a_message_that_cannot_be_published_is_an_error(evt: Event, make_app: Callable[..., Celery]) -> None:
    """A bug in the user's task class is not taken for a broker that is away, and is the error's cause."""
    bind(make_app(task_cls=Buggy))
    offloaded(evt, "shop.a", delivery="broker")
    with pytest.raises(DispatchError, match=r"shop\.a") as caught:
        emit(evt)
    assert type(caught.value.__cause__) is LookupError
    assert states() == {}


def test_a_tracked_message_that_cannot_be_published_is_tried_later(evt: Event, make_app: Callable[..., Celery]) -> None:
    """A tracked message that cannot be published waits with its error, and the publisher stays ready."""
    bind(make_app(task_cls=Buggy))
    offloaded(evt, "shop.a")
    emit(evt)
    drain_publisher()
    (entry,) = deliveries()
    assert entry.state == "waiting"
    assert "LookupError: bug" in str(entry.error)
    assert entry.due is not None
    assert is_ready()


def test_a_payload_that_rabbitmq_would_refuse_is_an_error_at_emit(
    evt: Event, offloading: None, closed_port: int
) -> None:
    """A payload over RabbitMQ's limit raises at the emit; a tracked one stays in the database."""
    bound(f"amqp://127.0.0.1:{closed_port}/")
    offloaded(evt, "shop.a", delivery="broker")
    with pytest.raises(PayloadError, match=r"shop\.a.*max_message_size|shop\.a.*RabbitMQ takes"):
        emit(evt, "x" * (17 * 1024 * 1024))
    large = Namespace().event("large")
    offloaded(large, "shop.b")
    emit(large, "x" * (17 * 1024 * 1024))
    assert list(states()) == ["shop.b"]


@pytest.mark.server
@pytest.mark.parametrize("broker", ["redis", "amqp"])
def test_one_that_the_broker_refuses_keeps_no_other_from_leaving(
    evt: Event, offloading: None, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused message is tried later, and the broker does not count as down."""
    queue = f"nitro-refused-{os.getpid()}"
    app = on_server(broker)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        if broker == "redis":
            channel.client.set(f"{queue}.wrong", "no list")
        else:
            channel.queue_declare(f"{queue}.wrong", durable=False, auto_delete=True)
        offloaded(evt, "shop.wrong", queue=f"{queue}.wrong")
        offloaded(evt, "shop.good", queue=queue)
        emit(evt)
        drain_publisher()
        assert states() == {"shop.wrong": "waiting", "shop.good": "queued"}
        assert is_ready()
        assert channel.queue_declare(queue, passive=True).message_count >= 1
        channel.queue_delete(queue)
        channel.queue_delete(f"{queue}.wrong")


def test_the_publisher_survives_a_database_that_is_away_too(
    evt: Event, app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that cannot be put back is left to its lease, and the next emit is published."""
    offloaded(evt, "shop.a")

    with monkeypatch.context() as patch:
        faults.fail_publishing(patch, OperationalError("away"))
        faults.fail_requeueing(patch, OperationalError("away"))
        emit(evt)
        drain_publisher()
    assert "could not be put back" in caplog.text
    faults.set_reachable(True)
    emit(evt)
    drain_publisher()
    with app.connection_for_read() as connection:
        assert connection.default_channel._size("celery") == 1


def test_tracked_delivery_over_a_server_needs_a_database(
    evt: Event, offloading: None, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracked delivery needs a database that workers can read; the error names the alternatives."""
    monkeypatch.delenv("NITRO_DB_URL")
    bound(f"redis://127.0.0.1:{closed_port}/")
    offloaded(evt, "shop.a")
    with pytest.raises(NoDatabase, match=r"shop\.a.*NITRO_DB_URL.*delivery='broker'"):
        emit(evt)
