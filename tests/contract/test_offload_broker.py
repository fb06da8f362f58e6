"""A real broker's round trips, and a broker that is away: contract sections 1 and 7."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task
from redis import Redis
from redis.connection import Connection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError

from nitro.errors import DispatchError
from nitro.infrastructure.events import Event, emit, emit_async, on
from nitro.infrastructure.offload import bind

DATABASE = 10
SECONDS = 15.0


def offloaded(evt: Event, *names: str) -> None:
    """Connect an offloaded handler of each name."""
    for name in names:
        on(evt, offload=True, name=name)(lambda sender: None)


def bound(broker_url: str) -> Celery:
    """A bound app with that broker and no results."""
    app = Celery("shop", set_as_current=False)
    app.config_from_object({"broker_url": broker_url})
    return bind(app)


@pytest.fixture
def redis_app(offloading: None) -> Iterator[Celery]:
    """A bound app on an empty database of a real Redis; skips where none answers."""
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
    """What is sent to Redis, an item for each time something is."""
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
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.server
@pytest.mark.parametrize("handlers", [1, 5])
def test_emission_is_one_round_trip_to_redis(
    evt: Event, redis_app: Celery, round_trips: list[bytes], handlers: int
) -> None:
    """All tasks of an emission go in one pipeline."""
    offloaded(evt, *(f"shop.{number}" for number in range(handlers)))
    emit(evt)
    round_trips.clear()
    emit(evt)
    carrying = [trip for trip in round_trips if b"LPUSH" in trip]
    assert len(carrying) == 1
    assert carrying[0].count(b"LPUSH") == handlers


@pytest.mark.server
def test_redis_gets_all_messages(evt: Event, redis_app: Celery) -> None:
    """Nothing of a batch is left behind."""
    offloaded(evt, "shop.a", "shop.b", "shop.c")
    emit(evt)
    asyncio.run(emit_async(evt))
    with redis_app.connection_for_read() as connection:
        assert connection.default_channel._size("celery") == 6


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("emitting", ["emit", "emit_async"])
def test_unreachable_broker_raises_within_seconds(
    evt: Event, offloading: None, closed_port: int, scheme: str, emitting: str
) -> None:
    """The error names the event and each handler that was not dispatched."""
    bound(f"{scheme}://127.0.0.1:{closed_port}/")
    offloaded(evt, "shop.a", "shop.b")
    before = time.monotonic()
    with pytest.raises(DispatchError) as caught:
        emit(evt) if emitting == "emit" else asyncio.run(emit_async(evt))
    assert time.monotonic() - before < SECONDS
    assert caught.value.handlers == ("shop.a", "shop.b")
    assert all(name in str(caught.value) for name in (evt.name, "shop.a", "shop.b"))


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_silent_broker_raises_within_seconds(evt: Event, offloading: None, silent_port: int, scheme: str) -> None:
    """A frozen broker that accepts connections blocks nobody for ever."""
    bound(f"{scheme}://127.0.0.1:{silent_port}/")
    offloaded(evt, "shop.a")
    before = time.monotonic()
    with pytest.raises(DispatchError):
        emit(evt)
    assert time.monotonic() - before < 2 * SECONDS


@pytest.mark.server
def test_emit_works_again_when_the_broker_is_back(
    evt: Event, redis_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed publish leaves no broken producer behind."""
    offloaded(evt, "shop.a", "shop.b")
    emit(evt)
    with monkeypatch.context() as away:
        away.setattr(Connection, "_connect", _refuse)
        away.setattr(Connection, "send_packed_command", _break)
        with pytest.raises(DispatchError):
            emit(evt)
    emit(evt)
    with redis_app.connection_for_read() as connection:
        assert connection.default_channel._size("celery") == 4


def _refuse(self: Connection) -> Any:
    raise ConnectionRefusedError("connection refused")


def _break(self: Connection, *args: Any, **kwargs: Any) -> None:
    self.disconnect()
    raise ConnectionLost("connection lost")


def test_inline_handlers_have_run_when_the_broker_is_away(evt: Event, offloading: None, closed_port: int) -> None:
    """The error comes from the last step; it says nothing about what happened before."""
    bound(f"redis://127.0.0.1:{closed_port}/")
    offloaded(evt, "shop.a")
    ran: list[str] = []
    evt.connect(lambda sender: ran.append("inline"))
    with pytest.raises(DispatchError):
        emit(evt)
    assert ran == ["inline"]


def test_any_failure_to_publish_names_the_handlers(evt: Event, make_app: Callable[..., Celery]) -> None:
    """Also a bug in the user's own task class says what was not dispatched, and keeps its cause."""
    bug = KeyError("bug")

    class Buggy(Task):
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            raise bug

    bind(make_app(task_cls=Buggy))
    offloaded(evt, "shop.a")
    with pytest.raises(DispatchError, match=r"shop\.a") as caught:
        emit(evt)
    assert caught.value.__cause__ is bug
