"""The Redis commands that a batch of messages becomes."""

from __future__ import annotations

import os
from ast import literal_eval
from contextlib import contextmanager
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import BatchPublishError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from nitro.infrastructure.offload.publishing import redis
from nitro.infrastructure.offload.publishing.redis import (
    RENEWAL_SECONDS,
    RedisAnswerTimeout,
    RedisPipeline,
    optimize_channel,
    reuse_client,
)


class Connection:
    """A connection that records its commands, one item a flush; it fails or stays silent on demand."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.error: BaseException | None = None
        self.silent = False
        self.answers = 0
        self.pid = os.getpid()
        self.open = self.hung_up = self.has_push = False
        self.connect()

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

    def can_read(self, timeout: float = 0) -> bool:
        self._fail()
        if self.hung_up:
            raise RedisConnectionError("Connection closed by server.")
        return self.has_push or (self.answers > 0 and not self.silent)

    def read_response(self) -> None:
        self._fail()
        assert self.answers > 0
        self.answers -= 1

    def connect(self) -> None:
        self.open = True

    def disconnect(self) -> None:
        self.open = self.hung_up = self.has_push = False
        self.answers = 0

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class Client:
    """A client with a pool of the given connections."""

    def __init__(self, *connections: Connection) -> None:
        self.connection_pool = self
        self.free = list(connections)
        self.released = list[Connection]()

    def get_connection(self) -> Connection:
        connection = self.free.pop()
        connection.connect()
        return connection

    def release(self, connection: Connection) -> None:
        """Takes a connection, on which redis-py sends a new password now."""
        assert not connection.answers
        assert not connection.hung_up
        self.released.append(connection)
        self.free.append(connection)


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def client(connection: Connection) -> Client:
    return Client(connection)


@pytest.fixture
def pipeline(client: Client) -> RedisPipeline:
    return RedisPipeline(client)


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
    flushed(RedisPipeline(client), ("lpush", "q", "1"), ("publish", "topic", "x"))
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
    pipeline = RedisPipeline(client)
    connection.silent = True
    with pytest.raises(RedisAnswerTimeout) as late:
        flushed(pipeline, ("lpush", "q", "1"), patience=0.01)
    assert not pipeline.is_open
    flushed(pipeline, ("lpush", "q", "2"), patience=0.01)
    pipeline.read_answers(late.value.pending)
    flushed(pipeline, ("lpush", "q", "3"), patience=0.01)
    assert connection.sent == [[("LPUSH", "q", "1")]]
    assert other.sent == [[("LPUSH", "q", "2")], [("LPUSH", "q", "3")]]
    assert client.free == [connection]


def test_one_connection_is_used_again(connection: Connection, client: Client, pipeline: RedisPipeline) -> None:
    """The pool is asked for a connection once, and no command of another user of the pool gets between."""
    assert not pipeline.is_open
    for patience in (None, 0.01, None):
        flushed(pipeline, ("lpush", "q", "1"), patience=patience)
        assert pipeline.is_open
    assert len(connection.sent) == 3
    assert (client.free, client.released) == ([], [])


def test_a_connection_whose_late_answer_came_is_used_again(connection: Connection, pipeline: RedisPipeline) -> None:
    """The answer is read from the connection first."""
    connection.silent = True
    with pytest.raises(RedisAnswerTimeout) as late:
        flushed(pipeline, ("lpush", "q", "1"), patience=0.01)
    pipeline.read_answers(late.value.pending)
    assert connection.answers == 0
    assert pipeline.is_open


@pytest.mark.parametrize("event", ["hung_up", "has_push", "answers"])
def test_a_connection_that_has_something_to_read_is_dropped(
    connection: Connection, pipeline: RedisPipeline, event: str
) -> None:
    """The pipeline drops the connection before it sends: the answer may belong to another command."""
    flushed(pipeline, ("lpush", "q", "1"))
    setattr(connection, event, 1)
    assert not pipeline.is_open
    flushed(pipeline, ("lpush", "q", "2"))
    assert connection.sent == [[("LPUSH", "q", "1")], [("LPUSH", "q", "2")]]
    assert pipeline.is_open


def test_a_connection_of_another_process_is_not_read(connection: Connection, pipeline: RedisPipeline) -> None:
    """A forked child has its parent's connection, and would take the parent's answers from it."""
    flushed(pipeline, ("lpush", "q", "1"))
    connection.pid += 1
    connection.can_read = None  # type: ignore[method-assign,assignment]  # raises when it is called
    assert not pipeline.is_open
    flushed(pipeline, ("lpush", "q", "2"))
    assert len(connection.sent) == 2


def test_a_connection_passes_through_its_pool_from_time_to_time(
    client: Client, pipeline: RedisPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py sends a new password when a connection is released, and closes one that a server wants to be closed."""
    flushed(pipeline, ("lpush", "q", "1"))
    now = redis.monotonic()
    monkeypatch.setattr(redis, "monotonic", lambda: now + RENEWAL_SECONDS)
    assert not pipeline.is_open
    assert client.released == []
    flushed(pipeline, ("lpush", "q", "2"))
    assert len(client.released) == 1
    assert pipeline.is_open


def test_a_connection_is_in_its_pool_for_commands_of_kombu(client: Client) -> None:
    """The pool may be limited to a single connection."""
    channel: Any = Acquiring(client)
    channel.basic_publish = len
    pipeline = optimize_channel(channel)
    assert pipeline is not None
    flushed(pipeline, ("lpush", "q", "1"))
    assert client.free == []
    with channel.conn_or_acquire() as acquired:
        assert acquired is client
        assert len(client.free) == 1


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

    def __init__(self, client: Client | None = None) -> None:
        self.made, self._client = 0, client

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Any:
        self.made += client is None
        yield client or self._client or f"client {self.made}"


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
