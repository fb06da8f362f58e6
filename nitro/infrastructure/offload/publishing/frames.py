"""Frames: messages on their way to a server that speaks AMQP, in one write, and with their common part encoded once.

By itself, py-amqp encodes every header of every message anew, and writes to the socket for each one.
"""

from __future__ import annotations

from contextlib import suppress
from select import POLLOUT
from struct import pack
from typing import Any

from amqp import Message, RecoverableConnectionError  # type: ignore[import-untyped]  # no stubs
from amqp.method_framing import frame_writer  # type: ignore[import-untyped]  # the same
from amqp.serialization import dumps  # type: ignore[import-untyped]  # the same
from amqp.spec import Basic  # type: ignore[import-untyped]  # the same
from kombu.transport.pyamqp import Channel

from nitro.infrastructure.offload.publishing.redis import poll_socket

MOST = 128 * 1024
"""Bytes that gather at most."""

_METHOD = 1
"""The type of the frame that a message begins with."""
_LENGTH = 4
"""Bytes before the entries of a table."""
_MARK = "nitro-own"
"""Stands for what belongs to one message, where the properties of the first one are encoded."""

Facts = dict[str, Any]


class Frames:
    """What is published on a channel, gathered until it is flushed; py-amqp makes the frames."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._frame = frame_writer(channel.connection, self)
        self._send = channel.send_method
        self._gathered, self._messages = bytearray(), 0
        channel.basic_publish, channel.send_method = self._publish, self._send_after

    @property
    def is_open(self) -> bool:
        """Whether the socket takes something at once."""
        sock = getattr(getattr(self._channel.connection, "transport", None), "sock", None)
        return sock is not None and poll_socket(sock, POLLOUT) == [POLLOUT]

    def write(self, frames: memoryview) -> None:
        """Gather a piece; called by py-amqp, which uses its buffer again."""
        self._gathered += frames

    def flush(self, _patience: float | None = None) -> None:
        """Send what has gathered.

        Raises:
            Exception: the channel or the connection has broken.
        """
        gathered = self._gathered
        if not self.discard():
            return
        connection = self._channel.connection
        if connection is None:
            raise RecoverableConnectionError("the channel is closed")
        with suppress(TimeoutError):
            connection.drain_events(timeout=0)  # as py-amqp does: the server may have closed the channel
        connection.transport.write(gathered)

    def discard(self) -> int:
        """Drop what has gathered; the number of the messages."""
        dropped, self._gathered, self._messages = self._messages, bytearray(), 0
        return dropped

    def _publish(self, message: Any, exchange: str = "", routing_key: str = "", **how: Any) -> None:
        """Gather a message; called as `basic_publish` of the channel."""
        flags = how.get("mandatory", False), how.get("immediate", False)
        args = dumps("Bssbb", (0, exchange, routing_key, *flags))
        self._frame(_METHOD, self._channel.channel_id, Basic.Publish, args, message)
        self._messages += 1
        if len(self._gathered) >= MOST:
            self.flush()

    def _send_after(self, *method: Any, **how: Any) -> Any:
        """Send a method, such as a declaration, whose failure closes the channel, after what has gathered."""
        self.flush()
        return self._send(*method, **how)


def frames_of(channel: Any) -> Frames | None:
    """Where messages on a channel of py-amqp gather; None elsewhere, or where each is waited for by itself."""
    known = type(channel) is Channel and hasattr(Message, "_serialize_properties")
    return Frames(channel) if known and "basic_publish" not in vars(channel) else None


class Framed:
    """The way of a handler's messages into an exchange.

    Args:
        message: the first one, as it was given to the channel.
        how: the other arguments of `basic_publish`.
        headers: those that all have in common.
    """

    def __init__(self, channel: Any, message: Any, how: Facts, headers: Facts) -> None:
        self._channel, self._task_options = channel, how
        self._encoding = message.properties["content_encoding"]
        self._headers = _entries(headers)
        own = {"application_headers": {_MARK: None}, "correlation_id": _MARK}
        marked = Message(**{**message.properties, **own})._serialize_properties()
        self._before, rest = marked.split(dumps("F", [{_MARK: None}]))
        self._middle, self._tail = rest.split(dumps("s", [_MARK]))

    def wire_text(self, data: Any) -> bytes:
        """A serialised body as py-amqp writes it."""
        return data.encode(self._encoding) if isinstance(data, str) else bytes(data)

    def write(self, wire: bytes, facts: Facts, task_id: str) -> None:
        """Publish a message.

        Args:
            facts: the headers that are its own.

        Raises:
            Exception: what the transport raises.
        """
        table = self._headers + _entries(facts)
        encoded = self._before, pack(">I", len(table)), table, self._middle, dumps("s", [task_id]), self._tail
        self._channel.basic_publish(_Encoded(wire, b"".join(encoded), task_id), **self._task_options)


class _Encoded(Message):  # type: ignore[misc]  # no stubs
    """A message whose properties are bytes already."""

    def __init__(self, body: bytes, encoded: bytes, task_id: str) -> None:
        super().__init__(body, correlation_id=task_id)
        self._encode_call = encoded

    def _serialize_properties(self) -> bytes:
        return self._encode_call


def _entries(facts: Facts) -> bytes:
    """The inside of a table."""
    table: bytes = dumps("F", [facts])
    return table[_LENGTH:]
