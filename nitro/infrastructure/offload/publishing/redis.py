"""Cheaper publishing on Redis: one client and one connection a channel, and one pipeline a batch.

By itself, kombu acquires a client and a connection for each message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from os import getpid
from time import monotonic
from typing import Any

from kombu.exceptions import BatchPublishError
from kombu.transport import virtual
from uuid_utils import uuid4

MAX_PIPELINE_COMMANDS = 1000
"""Commands from which on the pipeline is flushed."""
RENEWAL_SECONDS = 5.0
"""Seconds after which the kept connection passes through the pool, which authenticates or replaces it on demand."""

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
    client = reuse_client(channel)
    if client is None:
        return None
    pipeline = RedisPipeline(client)
    channel.basic_publish = partial(channel.basic_publish, _publish_batch=pipeline)
    channel.conn_or_acquire = partial(_acquire_client, pipeline, channel.conn_or_acquire)
    return pipeline


def _acquire_client(
    pipeline: RedisPipeline, acquire: Callable[[Any], AbstractContextManager[Any]], other: Any = None
) -> AbstractContextManager[Any]:
    """Acquires the client for a command of kombu, with the kept connection in the pool, which may be limited to one."""
    pipeline.give_back()
    return acquire(other)


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


def new_delivery_tag() -> str:
    """Returns a random UUID, as kombu does."""
    return str(uuid4())


class RedisPipeline:
    """The buffer of Redis commands: one round trip for all, and one LPUSH for neighbouring messages of one list.

    It replaces `kombu.transport.redis.PublishBatch`, which makes one command of each message. It keeps a connection
    of the client's pool and uses it without the client, which would send some commands twice. One thread uses it at
    a time.

    Args:
        client: a client of redis-py.
    """

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self._add_prefix: Callable[[Command], Command] = getattr(client, "_prefix_args", tuple)
        self._commands: list[Command] = []
        self._connection: Any = None
        self._renewal_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the kept connection is usable, as far as its socket tells without a wait."""
        return self._connection is not None and monotonic() < self._renewal_at and is_usable(self._connection)

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
            patience: seconds to wait for the answer on a connection of which `is_open` was true just now; None to check
                the connection first, and to wait for the answer until its own timeout.

        Raises:
            RedisAnswerTimeout: the answer has not come within `patience` seconds.
            BatchPublishError: Redis may not have executed all commands.
        """
        commands, self._commands = list(map(self._add_prefix, _merge_pushes(self._commands))), []
        if not commands:
            return
        connection = self._take_connection(is_checked=patience is not None)
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
        self._keep_connection(connection)

    def discard(self) -> int:
        """Empties the buffer and returns the number of its commands."""
        dropped, self._commands = len(self._commands), []
        return dropped

    def give_back(self) -> None:
        """Returns the kept connection to the pool, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._release(connection)

    def _take_connection(self, *, is_checked: bool) -> Any:
        """Returns the kept connection, which is then no longer kept, or one of the pool."""
        if not (is_checked or self.is_open):
            self.give_back()
        connection, self._connection = self._connection, None
        if connection is None:
            self._renewal_at = monotonic() + RENEWAL_SECONDS
            connection = self._pool.get_connection()
        return connection

    def _keep_connection(self, connection: Any) -> None:
        """Keeps a connection without open answers, unless another is kept since."""
        if self._connection is None:
            self._connection = connection
        else:
            self._release(connection)

    def _release(self, connection: Any) -> None:
        """Returns a connection to the pool, which sends a new password or closes it if the server asks for that.

        A connection that is not usable is closed before, so that a password is sent on a new one.
        """
        if not is_usable(connection):
            connection.disconnect()
        self._pool.release(connection)

    def _disconnect(self, connection: Any, error: BaseException) -> None:
        """Closes the connection, so that no late answer is read as the answer to a later command.

        Raises:
            BatchPublishError: `error` is an error of Redis or of the socket.
        """
        from redis.exceptions import RedisError

        connection.disconnect()
        self._pool.release(connection)
        if isinstance(error, RedisError | OSError):
            why = f"Redis has not taken a batch, of which some may have been delivered: {error}"
            raise BatchPublishError(why) from error


def send_commands(connection: Any, commands: list[Command]) -> None:
    """Sends commands in one write to the socket."""
    packed = connection.pack_command(*commands[0]) if len(commands) == 1 else connection.pack_commands(commands)
    connection.send_packed_command([b"".join(packed)])


def is_usable(connection: Any) -> bool:
    """Whether an idle connection belongs to this process and has nothing to read.

    A connection that the server has closed is readable, as is an answer to an earlier command or a PUSH message.
    """
    from redis.exceptions import RedisError

    try:
        return connection.pid == getpid() and not connection.can_read()
    except (RedisError, OSError):  # closed by the server
        return False


def _merge_pushes(commands: list[Command]) -> Iterator[Command]:
    """Yields the commands, with neighbouring LPUSHes to one key as one command."""
    for (name, key), neighbours in groupby(commands, key=lambda command: command[:2]):
        if name == "LPUSH":
            yield (name, key, *(value for command in neighbours for value in command[2:]))
        else:
            yield from neighbours
