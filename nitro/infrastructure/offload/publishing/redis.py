"""Channels: what kombu makes anew for each message, made once or made cheaply."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from select import POLLIN
from typing import Any

from kombu.exceptions import BatchPublishError
from kombu.transport import virtual
from uuid_utils import uuid4

MAX_PIPELINE_COMMANDS = 1000
"""Commands that leave together at most."""

Command = tuple[Any, ...]
PendingAnswers = tuple[Any, int]
"""A connection to Redis, and how many answers are still to come on it."""


class RedisAnswerTimeout(TimeoutError):
    """Redis has not answered what was sent to it in time; `RedisPipeline.read_answers` waits for the answers.

    Attributes:
        owed: the connection on which it will, and how many times.
    """

    def __init__(self, owed: PendingAnswers) -> None:
        super().__init__("Redis has not answered in time")
        self.pending = owed


def optimize_channel(channel: Any) -> RedisPipeline | None:
    """Make publishing through a channel cheaper; what it publishes stays the same.

    Returns:
        Where the messages of a channel on Redis gather until they are flushed, or None elsewhere.
    """
    if isinstance(channel, virtual.Channel):
        channel._next_delivery_tag = new_delivery_tag  # type: ignore[method-assign]  # on this one channel
    idle = idle_connections_of(channel)
    if idle is None:
        return None
    pipeline = RedisPipeline(idle)
    channel.basic_publish = partial(channel.basic_publish, _publish_batch=pipeline)
    return pipeline


def reuse_client(channel: Any) -> Any:
    """Have a channel on Redis use one client, an object that its connections outlive; the client, or None elsewhere."""
    acquire = getattr(channel, "conn_or_acquire", None)
    if acquire is None:
        return None
    with acquire() as client:
        channel.conn_or_acquire = lambda given=None: acquire(given or client)
    return client


def idle_connections_of(channel: Any) -> IdleConnections | None:
    """The spare connections of a channel on Redis, whose client is kept; None elsewhere, or of another kind of pool."""
    client = reuse_client(channel)
    return (
        IdleConnections(client) if hasattr(getattr(client, "connection_pool", None), "_available_connections") else None
    )


def new_delivery_tag() -> str:
    """A random UUID, as kombu's."""
    return str(uuid4())


class IdleConnections:
    """The connections of a client that nobody uses; to have its pool look for one costs a quarter of a round trip.

    Args:
        client: of redis-py, with a `ConnectionPool`.

    Attributes:
        prefixed: a command with the `global_keyprefix` of the client.
    """

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self.add_prefix: Callable[[Command], Command] = getattr(client, "_prefix_args", tuple)

    @property
    def has_live_connection(self) -> bool:
        """Whether the one that is taken next does, as far as can be seen without a wait."""
        with self._pool._lock:
            return self._live_connection() is not None

    def acquire(self) -> Any:
        """A connection that stands; a new one where there is none."""
        connection = self._pop_live()
        if connection is None:
            self._pool.release(self._pool.get_connection())  # which connects it
            connection = self._pop_live() or self._pool.get_connection()
        return connection

    def release(self, connection: Any) -> None:
        """Have it used again, by whoever is next."""
        if getattr(connection, "_should_reconnect", False) or getattr(connection, "_re_auth_token", None) is not None:
            self._pool.release(connection)  # which does what a server, or a new password, asks for
            return
        with self._pool._lock:
            self._pool._in_use_connections.discard(connection)
            self._pool._available_connections.append(connection)

    def _pop_live(self) -> Any:
        with self._pool._lock:  # which others hold while they say something on a free connection
            connection = self._live_connection()
            if connection is not None:
                self._pool._in_use_connections.add(self._pool._available_connections.pop())
            return connection

    def _live_connection(self) -> Any:
        """The one that is next, if it is connected and says nothing; it would be closed, or say what nobody asked."""
        free = self._pool._available_connections
        sock = free[-1]._sock if free else None
        return None if sock is None or poll_socket(sock, POLLIN) else free[-1]


class RedisPipeline:
    """What Redis is to be told, gathered: one round trip, and one LPUSH for neighbouring messages into one list.

    It stands where `kombu.transport.redis.PublishBatch` does, which makes a command of each, and speaks through a
    connection of the client's pool without the client, which would say some things twice.
    """

    def __init__(self, idle: IdleConnections) -> None:
        self._idle_connections = idle
        self._commands: list[Command] = []

    @property
    def is_open(self) -> bool:
        """Whether the connection that is used next stands, as far as can be seen without a wait."""
        return self._idle_connections.has_live_connection

    def add(self, name: str, *args: Any) -> None:
        """Gather a command; called by the channel.

        Raises:
            BatchPublishError: as `flush`; what had gathered before was too much to leave with it.
        """
        if len(self._commands) >= MAX_PIPELINE_COMMANDS:
            self.flush()
        self._commands.append((name.upper(), *args))

    def flush(self, patience: float | None = None) -> None:
        """Have Redis execute what has gathered, in one round trip and without trying again.

        Args:
            patience: seconds to wait for the answer; None for as long as the connection waits.

        Raises:
            Unanswered: it has not come within that time.
            BatchPublishError: some may not have been executed.
        """
        commands, self._commands = list(map(self._idle_connections.add_prefix, _merge_pushes(self._commands))), []
        if not commands:
            return
        connection = self._idle_connections.acquire()
        try:
            send_commands(connection, commands)
            answered = patience is None or connection.can_read(patience)
        except BaseException as error:
            self._disconnect(connection, error)
            raise
        owed = connection, len(commands)
        if not answered:
            raise RedisAnswerTimeout(owed)
        self.read_answers(owed)

    def read_answers(self, owed: PendingAnswers) -> None:
        """Wait for the answer to what was sent.

        Raises:
            BatchPublishError: some may not have been executed.
        """
        connection, count = owed
        try:
            for _ in range(count):
                connection.read_response()
        except BaseException as error:
            self._disconnect(connection, error)
            raise
        self._idle_connections.release(connection)

    def discard(self) -> int:
        """Drop what has gathered; the number of the commands."""
        dropped, self._commands = len(self._commands), []
        return dropped

    def _disconnect(self, connection: Any, error: BaseException) -> None:
        """A failure is one of the batch; no answer that still comes is taken for that to something else."""
        from redis.exceptions import RedisError

        connection.disconnect()
        self._idle_connections.release(connection)
        if isinstance(error, RedisError | OSError):
            why = f"Redis has not taken a batch, of which some may have been delivered: {error}"
            raise BatchPublishError(why) from error


def send_commands(connection: Any, commands: list[Command]) -> None:
    """Send commands in one piece."""
    packed = connection.pack_command(*commands[0]) if len(commands) == 1 else connection.pack_commands(commands)
    connection.send_packed_command([b"".join(packed)])


def poll_socket(sock: Any, for_what: int) -> list[int]:
    """What a socket can be used for at once, of `POLLIN` and `POLLOUT`, or what is wrong with it; empty for nothing."""
    if not hasattr(select, "poll"):  # eventlet takes it away
        readable, writable, _ = select.select([sock], [sock], [], 0)
        return [for_what] if (readable if for_what == POLLIN else writable) else []
    asking = select.poll()
    asking.register(sock, for_what)
    return [event for _, event in asking.poll(0)]


def _merge_pushes(commands: list[Command]) -> Iterator[Command]:
    """The commands, with the values of neighbouring LPUSHes of one key in one of them."""
    for (name, key), some in groupby(commands, key=lambda command: command[:2]):
        if name == "LPUSH":
            yield (name, key, *(value for command in some for value in command[2:]))
        else:
            yield from some
