"""The Redis commands that a batch of messages becomes."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket, socketpair
from threading import RLock
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import BatchPublishError
from redis.exceptions import ResponseError

from nitro.infrastructure.offload.publishing import redis
from nitro.infrastructure.offload.publishing.redis import (
    IdleConnections,
    RedisAnswerTimeout,
    RedisPipeline,
    reuse_client,
)


class Connection:
    """A connection that records its commands, one item a flush; it fails or stays silent on demand."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.error: BaseException | None = None
        self.silent = False
        self.answers = 0
        self._should_reconnect = False
        self._sock: socket | None = None
        self.connect()

    @property
    def open(self) -> bool:
        return self._sock is not None

    def pack_command(self, *args: Any) -> list[bytes]:
        return [repr([args]).encode()]

    def pack_commands(self, commands: Any) -> list[bytes]:
        return [repr([tuple(command) for command in commands]).encode()]

    def send_packed_command(self, command: list[bytes]) -> None:
        self._fail()
        assert self.open
        (whole,) = command
        self.sent.append(literal_eval(whole.decode()))
        self.answers += len(self.sent[-1])

    def can_read(self, timeout: float) -> bool:
        self._fail()
        return not self.silent

    def read_response(self) -> None:
        self._fail()
        assert self.answers > 0
        self.answers -= 1

    def connect(self) -> None:
        if not self.open:
            self._sock, self._other_end = socketpair()

    def disconnect(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._other_end.close()
        self._sock, self.answers = None, 0

    @property
    def hung_up(self) -> bool:
        return self._other_end.fileno() < 0

    def hang_up(self) -> None:
        """Closes the server's end of the connection."""
        self._other_end.close()

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class Client:
    """A client with a pool of the given connections."""

    def __init__(self, *connections: Connection) -> None:
        self.connection_pool = self
        self._available_connections = list(connections)
        self._in_use_connections: set[Connection] = set()
        self._lock: Any = RLock()

    @property
    def free(self) -> list[Connection]:
        return self._available_connections

    def get_connection(self) -> Connection:
        connection = self.free.pop()
        if connection.hung_up:
            connection.disconnect()
        connection.connect()
        self._in_use_connections.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        assert not connection.answers
        if connection._should_reconnect:
            connection.disconnect()
        self._in_use_connections.remove(connection)
        self.free.append(connection)


@pytest.fixture
def connection() -> Iterator[Connection]:
    made = Connection()
    yield made
    made.disconnect()


@pytest.fixture
def pipeline(connection: Connection) -> RedisPipeline:
    return RedisPipeline(IdleConnections(Client(connection)))


def flushed(pipeline: RedisPipeline, *commands: Any, **how: Any) -> None:
    """Adds these commands to the pipeline, and flushes it."""
    for command in commands:
        pipeline.add(*command)
    pipeline.flush(**how)


def test_messages_of_one_list_are_one_command(connection: Connection, pipeline: RedisPipeline) -> None:
    """The command has the messages in the order in which they were added."""
    flushed(pipeline, ("lpush", "q", "1"), ("lpush", "q", "2"), ("lpush", "q", "3"))
    assert connection.sent == [[("LPUSH", "q", "1", "2", "3")]]


def test_lists_are_kept_apart_and_in_order(connection: Connection, pipeline: RedisPipeline) -> None:
    """A single round trip carries all lists; PEXPIRE follows each message of a queue that expires."""
    expiring = [("lpush", "b", "2"), ("pexpire", "b", 9)]
    flushed(pipeline, ("lpush", "a", "1"), *expiring, ("publish", "topic", "x"), ("lpush", "a", "3"))
    assert connection.sent == [
        [("LPUSH", "a", "1"), ("LPUSH", "b", "2"), ("PEXPIRE", "b", 9), ("PUBLISH", "topic", "x"), ("LPUSH", "a", "3")]
    ]


def test_keys_get_the_prefix_of_the_client(connection: Connection) -> None:
    """Consumers look for the messages under the prefixed key."""
    client: Any = Client(connection)
    client._prefix_args = lambda args: [args[0], f"shop:{args[1]}", *args[2:]]
    flushed(RedisPipeline(IdleConnections(client)), ("lpush", "q", "1"), ("publish", "topic", "x"))
    assert connection.sent == [[("LPUSH", "shop:q", "1"), ("PUBLISH", "shop:topic", "x")]]


def test_nothing_is_sent_for_nothing(connection: Connection, pipeline: RedisPipeline) -> None:
    """A discarded message is not sent either."""
    pipeline.add("lpush", "q", "1")
    pipeline.discard()
    pipeline.flush()
    assert connection.sent == []


def test_what_is_too_much_to_leave_together_leaves_before(
    connection: Connection, pipeline: RedisPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of more than MAX_PIPELINE_COMMANDS is sent in several flushes."""
    monkeypatch.setattr(redis, "MAX_PIPELINE_COMMANDS", 3)
    flushed(pipeline, *(("lpush", "q", str(number)) for number in range(5)))
    assert connection.sent == [[("LPUSH", "q", "0", "1", "2")], [("LPUSH", "q", "3", "4")]]


@pytest.mark.parametrize("error", [OSError("gone"), ResponseError("WRONGTYPE")])
@pytest.mark.parametrize("keys", [["q", "q"], ["q", "other"]], ids=["command", "commands"])
def test_a_failure_is_one_of_the_batch(
    connection: Connection, pipeline: RedisPipeline, keys: list[str], error: Exception
) -> None:
    """The error has its cause, the connection is closed, and the messages are not sent again."""
    connection.error = error
    with pytest.raises(BatchPublishError) as caught:
        flushed(pipeline, *(("lpush", key, "1") for key in keys))
    assert caught.value.__cause__ is error
    assert not connection.open
    connection.error = None
    pipeline.flush()
    assert connection.sent == []


def test_an_answer_that_is_late_is_waited_for_apart(connection: Connection) -> None:
    """The connection stays reserved until the late answer is read; other commands use another connection."""
    other = Connection()
    client = Client(other, connection)
    pipeline = RedisPipeline(IdleConnections(client))
    connection.silent = True
    with pytest.raises(RedisAnswerTimeout) as late:
        flushed(pipeline, ("lpush", "q", "1"), patience=0.01)
    assert connection.sent == [[("LPUSH", "q", "1")]]
    flushed(pipeline, ("lpush", "q", "2"), patience=0.01)
    assert other.sent == [[("LPUSH", "q", "2")]]
    pipeline.read_answers(late.value.pending)
    assert connection.answers == 0
    assert client.free == [other, connection]
    other.disconnect()


def test_a_connection_that_was_closed_is_made_anew(connection: Connection, pipeline: RedisPipeline) -> None:
    """The closed connection is noticed before the send, because a failed send may have arrived."""
    assert pipeline.is_open
    connection.hang_up()
    assert not pipeline.is_open
    flushed(pipeline, ("lpush", "q", "1"))
    assert connection.sent == [[("LPUSH", "q", "1")]]
    assert pipeline.is_open


def test_a_connection_that_a_server_wants_gone_is_used_no_more(connection: Connection, pipeline: RedisPipeline) -> None:
    """redis-py marks the connection when the server announces a maintenance; the mark closes it after the flush."""
    connection._should_reconnect = True
    flushed(pipeline, ("lpush", "q", "1"))
    assert not connection.open


def test_a_connection_is_taken_with_the_lock_of_its_pool(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py holds this lock while it sends a new password on the free connections."""
    client, locked = Client(connection), list[bool]()
    monkeypatch.setattr(redis, "poll_socket", lambda *_: locked.append(client._lock._is_owned()))
    flushed(RedisPipeline(IdleConnections(client)), ("lpush", "q", "1"))
    assert locked == [True]
    assert not client._lock._is_owned()


def test_a_connection_in_use_is_known_to_its_pool(connection: Connection) -> None:
    """Closing the pool also closes a connection in use; afterwards the connection is free again."""
    client, used = Client(connection), list[set[Connection]]()
    connection.pack_command = lambda *args: used.append({*client._in_use_connections}) or [repr([args]).encode()]  # type: ignore[func-returns-value,method-assign]  # noted
    flushed(RedisPipeline(IdleConnections(client)), ("lpush", "q", "1"))
    assert used == [{connection}]
    assert (client.free, client._in_use_connections) == ([connection], set())


def test_what_a_signal_raises_is_no_failure_of_redis(connection: Connection, pipeline: RedisPipeline) -> None:
    """The emitter gets the signal's exception, such as a soft time limit; no answer is left unread."""
    connection.error = SoftTimeLimitExceeded()
    with pytest.raises(SoftTimeLimitExceeded):
        flushed(pipeline, ("lpush", "q", "1"))
    assert not connection.open
    connection.error = None
    flushed(pipeline, ("lpush", "q", "2"))
    assert connection.sent == [[("LPUSH", "q", "2")]]


class Acquiring:
    """A channel that makes a client for each caller without one, as kombu's channel does."""

    def __init__(self) -> None:
        self.made = 0

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Any:
        self.made += client is None
        yield client or f"client {self.made}"


def test_a_kept_client_is_given_to_whoever_brings_none() -> None:
    """A client that the caller passes is not replaced."""
    channel = Acquiring()
    assert reuse_client(channel) == "client 1"
    for given, got in ((None, "client 1"), ("own", "own"), (None, "client 1")):
        with channel.conn_or_acquire(given) as client:
            assert client == got
    with channel.conn_or_acquire() as client:
        assert client == "client 1"
    assert channel.made == 1


def test_a_channel_without_clients_is_left_alone() -> None:
    """A channel without clients, such as one on RabbitMQ, has no client to reuse."""
    assert reuse_client(object()) is None
