"""Cheaper publishing on Redis: one client and one connection a channel, and one pipeline a batch.

By itself, kombu acquires a client and a connection for each message.
"""

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
"""Commands from which on the pipeline is flushed."""

Command = tuple[Any, ...]
PendingAnswers = tuple[Any, int]
"""A connection to Redis, and the number of answers that it has not sent yet."""


class RedisAnswerTimeout(TimeoutError):
    """Redis has not answered the commands in time; `RedisPipeline.read_answers` waits for the answers.

    Attributes:
        pending: the connection, and the number of answers that are still to come on it.
    """

    def __init__(self, pending: PendingAnswers) -> None:
        super().__init__("Redis has not answered in time")
        self.pending = pending


def optimize_channel(channel: Any) -> RedisPipeline | None:
    """Makes publishing through a channel cheaper; the messages stay the same.

    Returns:
        The pipeline that buffers the messages of a channel on Redis until they are flushed; None on other brokers.
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
    """Makes a channel on Redis use one client for all commands, and returns it; None on other brokers.

    The client is an object without a connection: reconnects do not change it.
    """
    acquire = getattr(channel, "conn_or_acquire", None)
    if acquire is None:
        return None
    with acquire() as client:
        channel.conn_or_acquire = lambda other=None: acquire(other or client)
    return client


def idle_connections_of(channel: Any) -> IdleConnections | None:
    """Returns the idle connections of a channel on Redis; None on other brokers or for another kind of pool."""
    client = reuse_client(channel)
    return (
        IdleConnections(client) if hasattr(getattr(client, "connection_pool", None), "_available_connections") else None
    )


def new_delivery_tag() -> str:
    """Returns a random UUID, as kombu does."""
    return str(uuid4())


class IdleConnections:
    """The idle connections in the pool of a Redis client; the pool's own search costs a quarter of a round trip.

    Args:
        client: a client of redis-py with a `ConnectionPool`.

    Attributes:
        add_prefix: returns a command with the `global_keyprefix` of the client.
    """

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self.add_prefix: Callable[[Command], Command] = getattr(client, "_prefix_args", tuple)

    @property
    def has_live_connection(self) -> bool:
        """Whether the connection that is acquired next is usable, as far as its socket tells without a wait."""
        with self._pool._lock:
            return self._live_connection() is not None

    def acquire(self) -> Any:
        """Returns an idle connection that is usable, or a new one."""
        connection = self._pop_live()
        if connection is None:
            self._pool.release(self._pool.get_connection())  # get_connection() connects it
            connection = self._pop_live() or self._pool.get_connection()
        return connection

    def release(self, connection: Any) -> None:
        """Returns a connection to the pool."""
        if getattr(connection, "_should_reconnect", False) or getattr(connection, "_re_auth_token", None) is not None:
            self._pool.release(connection)  # release() reconnects or authenticates again
            return
        with self._pool._lock:
            self._pool._in_use_connections.discard(connection)
            self._pool._available_connections.append(connection)

    def _pop_live(self) -> Any:
        with self._pool._lock:  # redis-py holds it while it authenticates idle connections again
            connection = self._live_connection()
            if connection is not None:
                self._pool._in_use_connections.add(self._pool._available_connections.pop())
            return connection

    def _live_connection(self) -> Any:
        """Returns the next connection if it is connected and its socket has nothing to read.

        An idle socket that is readable was closed by the server, or has an answer to an earlier command.
        """
        idle = self._pool._available_connections
        sock = idle[-1]._sock if idle else None
        return None if sock is None or poll_socket(sock, POLLIN) else idle[-1]


class RedisPipeline:
    """The buffer of Redis commands: one round trip for all, and one LPUSH for neighbouring messages of one list.

    It replaces `kombu.transport.redis.PublishBatch`, which makes one command of each message. It uses a connection
    of the client's pool without the client, which would send some commands twice.
    """

    def __init__(self, idle: IdleConnections) -> None:
        self._idle_connections = idle
        self._commands: list[Command] = []

    @property
    def is_open(self) -> bool:
        """Whether the connection that is used next is usable, as far as its socket tells without a wait."""
        return self._idle_connections.has_live_connection

    def add(self, name: str, *args: Any) -> None:
        """Appends a command; called by the channel. A full buffer is flushed first.

        Raises:
            BatchPublishError: the flush has failed; Redis may not have executed all earlier commands.
        """
        if len(self._commands) >= MAX_PIPELINE_COMMANDS:
            self.flush()
        self._commands.append((name.upper(), *args))

    def flush(self, patience: float | None = None) -> None:
        """Sends all commands in one round trip and reads the answers; it does not try again.

        Args:
            patience: seconds to wait for the answer; None for the timeout of the connection.

        Raises:
            RedisAnswerTimeout: the answer has not come within `patience` seconds.
            BatchPublishError: Redis may not have executed all commands.
        """
        commands, self._commands = list(map(self._idle_connections.add_prefix, _merge_pushes(self._commands))), []
        if not commands:
            return
        connection = self._idle_connections.acquire()
        try:
            send_commands(connection, commands)
            has_answer = patience is None or connection.can_read(patience)
        except BaseException as error:
            self._disconnect(connection, error)
            raise
        pending = connection, len(commands)
        if not has_answer:
            raise RedisAnswerTimeout(pending)
        self.read_answers(pending)

    def read_answers(self, pending: PendingAnswers) -> None:
        """Waits for the answers to commands that were sent, and reads them.

        Raises:
            BatchPublishError: Redis may not have executed all commands.
        """
        connection, count = pending
        try:
            for _ in range(count):
                connection.read_response()
        except BaseException as error:
            self._disconnect(connection, error)
            raise
        self._idle_connections.release(connection)

    def discard(self) -> int:
        """Empties the buffer and returns the number of its commands."""
        dropped, self._commands = len(self._commands), []
        return dropped

    def _disconnect(self, connection: Any, error: BaseException) -> None:
        """Closes the connection, so that no late answer is read as the answer to a later command.

        Raises:
            BatchPublishError: `error` is an error of Redis or of the socket.
        """
        from redis.exceptions import RedisError

        connection.disconnect()
        self._idle_connections.release(connection)
        if isinstance(error, RedisError | OSError):
            why = f"Redis has not taken a batch, of which some may have been delivered: {error}"
            raise BatchPublishError(why) from error


def send_commands(connection: Any, commands: list[Command]) -> None:
    """Sends commands in one write to the socket."""
    packed = connection.pack_command(*commands[0]) if len(commands) == 1 else connection.pack_commands(commands)
    connection.send_packed_command([b"".join(packed)])


def poll_socket(sock: Any, event: int) -> list[int]:
    """Polls a socket for `POLLIN` or `POLLOUT` without a wait, and returns the events that `select.poll` reports.

    An empty list means that the socket is not ready; another event than `event` means that it is broken.
    """
    if not hasattr(select, "poll"):  # eventlet removes it
        readable, writable, _ = select.select([sock], [sock], [], 0)
        return [event] if (readable if event == POLLIN else writable) else []
    poller = select.poll()
    poller.register(sock, event)
    return [reported for _, reported in poller.poll(0)]


def _merge_pushes(commands: list[Command]) -> Iterator[Command]:
    """Yields the commands, with neighbouring LPUSHes to one key as one command."""
    for (name, key), neighbours in groupby(commands, key=lambda command: command[:2]):
        if name == "LPUSH":
            yield (name, key, *(value for command in neighbours for value in command[2:]))
        else:
            yield from neighbours
