"""Channels: what kombu makes anew for each message, made once or made cheaply."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any

from kombu.exceptions import BatchPublishError
from kombu.transport import virtual
from uuid_utils import uuid4


def tune(channel: Any) -> None:
    """Make publishing through a channel cheaper; what it publishes stays the same."""
    if isinstance(channel, virtual.Channel):
        channel._next_delivery_tag = _delivery_tag  # type: ignore[method-assign]  # on this one channel
    client = keep_client(channel)
    if client is not None:
        channel.create_publish_batch = partial(Pushes, channel, client)


def keep_client(channel: Any) -> Any:
    """Have a channel on Redis use one client, an object that its connections outlive; the client, or None elsewhere."""
    acquire = getattr(channel, "conn_or_acquire", None)
    if acquire is None:
        return None
    with acquire() as client:
        channel.conn_or_acquire = lambda given=None: acquire(given or client)
    return client


def _delivery_tag() -> str:
    return str(uuid4())


class Pushes:
    """A batch of a producer on Redis: one LPUSH for the messages that follow one another into a list.

    It stands where `kombu.transport.redis.PublishBatch` does, which makes a command of each.
    """

    def __init__(self, channel: Any, client: Any, max_size: int) -> None:
        self.channel = channel
        self._client, self._max_size = client, max_size
        self._commands: list[tuple[str, tuple[Any, ...]]] = []

    def publish(self, message: Any, **how: Any) -> Any:
        """Route one message, and gather the commands that deliver it."""
        gathered = len(self._commands)
        result = self.channel.basic_publish(message, _publish_batch=self, **how)
        if gathered and len(self._commands) > self._max_size:
            self.flush()
        return result

    def add(self, name: str, *args: Any) -> None:
        """Gather a command; called by the channel."""
        self._commands.append((name, args))

    def flush(self) -> None:
        """Have Redis execute what has gathered, in one round trip and without trying again.

        Raises:
            BatchPublishError: it did not; some may have been delivered.
        """
        commands, self._commands = list(_merged(self._commands)), []
        if not commands:
            return
        try:
            if len(commands) == 1:
                ((name, args),) = commands
                getattr(self._client, name)(*args)
                return
            with self._client.pipeline(transaction=False) as pipeline:
                for name, args in commands:
                    getattr(pipeline, name)(*args)
                pipeline.execute()
        except Exception as error:
            raise BatchPublishError("Redis has not taken a batch; some of it may have been delivered") from error

    def discard(self) -> None:
        """Drop what has gathered."""
        self._commands = []

    close = discard


def _merged(commands: list[tuple[str, tuple[Any, ...]]]) -> Any:
    """The commands, with the values of neighbouring LPUSHes of one key in one of them."""
    for (name, key), some in groupby(commands, key=lambda command: (command[0], command[1][0])):
        if name == "lpush":
            yield name, (key, *(value for _, args in some for value in args[1:]))
        else:
            yield from some
