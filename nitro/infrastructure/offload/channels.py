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

MOST = 1000
"""Commands that leave together at most."""

Command = tuple[Any, ...]
Owed = tuple[Any, int]
"""A connection to Redis, and how many answers are still to come on it."""


class Unanswered(TimeoutError):
    """Redis has what was sent to it, and has not answered in the time that was given; `Pushes.answer` waits for it.

    Attributes:
        owed: the connection on which it will, and how many times.
    """

    def __init__(self, owed: Owed) -> None:
        super().__init__("Redis has not answered in time")
        self.owed = owed


def tune(channel: Any) -> Pushes | None:
    """Make publishing through a channel cheaper; what it publishes stays the same.

    Returns:
        Where the messages of a channel on Redis gather until they are flushed, or None elsewhere.
    """
    if isinstance(channel, virtual.Channel):
        channel._next_delivery_tag = delivery_tag  # type: ignore[method-assign]  # on this one channel
    spare = spare_of(channel)
    if spare is None:
        return None
    pushes = Pushes(spare)
    channel.basic_publish = partial(channel.basic_publish, _publish_batch=pushes)
    return pushes


def keep_client(channel: Any) -> Any:
    """Have a channel on Redis use one client, an object that its connections outlive; the client, or None elsewhere."""
    acquire = getattr(channel, "conn_or_acquire", None)
    if acquire is None:
        return None
    with acquire() as client:
        channel.conn_or_acquire = lambda given=None: acquire(given or client)
    return client


def spare_of(channel: Any) -> Spare | None:
    """The spare connections of a channel on Redis, whose client is kept; None elsewhere, or of another kind of pool."""
    client = keep_client(channel)
    return Spare(client) if hasattr(getattr(client, "connection_pool", None), "_available_connections") else None


def delivery_tag() -> str:
    """A random UUID, as kombu's."""
    return str(uuid4())


class Spare:
    """The connections of a client that nobody uses; to have its pool look for one costs a quarter of a round trip.

    Args:
        client: of redis-py, with a `ConnectionPool`.

    Attributes:
        prefixed: a command with the `global_keyprefix` of the client.
    """

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self.prefixed: Callable[[Command], Command] = getattr(client, "_prefix_args", tuple)

    @property
    def stands(self) -> bool:
        """Whether the one that is taken next does, as far as can be seen without a wait."""
        with self._pool._lock:
            return self._standing() is not None

    def take(self) -> Any:
        """A connection that stands; a new one where there is none."""
        connection = self._taken()
        if connection is None:
            self._pool.release(self._pool.get_connection())  # which connects it
            connection = self._taken() or self._pool.get_connection()
        return connection

    def give_back(self, connection: Any) -> None:
        """Have it used again, by whoever is next."""
        if getattr(connection, "_should_reconnect", False) or getattr(connection, "_re_auth_token", None) is not None:
            self._pool.release(connection)  # which does what a server, or a new password, asks for
            return
        with self._pool._lock:
            self._pool._in_use_connections.discard(connection)
            self._pool._available_connections.append(connection)

    def _taken(self) -> Any:
        with self._pool._lock:  # which others hold while they say something on a free connection
            connection = self._standing()
            if connection is not None:
                self._pool._in_use_connections.add(self._pool._available_connections.pop())
            return connection

    def _standing(self) -> Any:
        """The one that is next, if it is connected and says nothing; it would be closed, or say what nobody asked."""
        free = self._pool._available_connections
        sock = free[-1]._sock if free else None
        return None if sock is None or polled(sock, POLLIN) else free[-1]


class Pushes:
    """What Redis is to be told, gathered: one round trip, and one LPUSH for neighbouring messages into one list.

    It stands where `kombu.transport.redis.PublishBatch` does, which makes a command of each, and speaks through a
    connection of the client's pool without the client, which would say some things twice.
    """

    def __init__(self, spare: Spare) -> None:
        self._spare = spare
        self._commands: list[Command] = []

    @property
    def is_open(self) -> bool:
        """Whether the connection that is used next stands, as far as can be seen without a wait."""
        return self._spare.stands

    def add(self, name: str, *args: Any) -> None:
        """Gather a command; called by the channel.

        Raises:
            BatchPublishError: as `flush`; what had gathered before was too much to leave with it.
        """
        if len(self._commands) >= MOST:
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
        commands, self._commands = list(map(self._spare.prefixed, _merged(self._commands))), []
        if not commands:
            return
        connection = self._spare.take()
        try:
            say(connection, commands)
            answered = patience is None or connection.can_read(patience)
        except BaseException as error:
            self._hang_up(connection, error)
            raise
        owed = connection, len(commands)
        if not answered:
            raise Unanswered(owed)
        self.answer(owed)

    def answer(self, owed: Owed) -> None:
        """Wait for the answer to what was sent.

        Raises:
            BatchPublishError: some may not have been executed.
        """
        connection, count = owed
        try:
            for _ in range(count):
                connection.read_response()
        except BaseException as error:
            self._hang_up(connection, error)
            raise
        self._spare.give_back(connection)

    def discard(self) -> int:
        """Drop what has gathered; the number of the commands."""
        dropped, self._commands = len(self._commands), []
        return dropped

    def _hang_up(self, connection: Any, error: BaseException) -> None:
        """A failure is one of the batch; no answer that still comes is taken for that to something else."""
        from redis.exceptions import RedisError

        connection.disconnect()
        self._spare.give_back(connection)
        if isinstance(error, RedisError | OSError):
            why = f"Redis has not taken a batch, of which some may have been delivered: {error}"
            raise BatchPublishError(why) from error


def say(connection: Any, commands: list[Command]) -> None:
    """Send commands in one piece."""
    packed = connection.pack_command(*commands[0]) if len(commands) == 1 else connection.pack_commands(commands)
    connection.send_packed_command([b"".join(packed)])


def polled(sock: Any, for_what: int) -> list[int]:
    """What a socket can be used for at once, of `POLLIN` and `POLLOUT`, or what is wrong with it; empty for nothing."""
    if not hasattr(select, "poll"):  # eventlet takes it away
        readable, writable, _ = select.select([sock], [sock], [], 0)
        return [for_what] if (readable if for_what == POLLIN else writable) else []
    asking = select.poll()
    asking.register(sock, for_what)
    return [event for _, event in asking.poll(0)]


def _merged(commands: list[Command]) -> Iterator[Command]:
    """The commands, with the values of neighbouring LPUSHes of one key in one of them."""
    for (name, key), some in groupby(commands, key=lambda command: command[:2]):
        if name == "LPUSH":
            yield (name, key, *(value for command in some for value in command[2:]))
        else:
            yield from some
