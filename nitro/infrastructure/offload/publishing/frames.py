"""AMQP frames: the messages of a batch in one write to the socket, with their common headers encoded once.

By itself, py-amqp encodes every header of every message anew, and writes to the socket for each message.
"""

from __future__ import annotations

import select
from contextlib import suppress
from select import POLLOUT
from struct import pack
from typing import Any

from amqp import Message, RecoverableConnectionError  # type: ignore[import-untyped]  # no stubs
from amqp.method_framing import frame_writer  # type: ignore[import-untyped]  # the same
from amqp.serialization import dumps  # type: ignore[import-untyped]  # the same
from amqp.spec import Basic  # type: ignore[import-untyped]  # the same
from kombu.transport.pyamqp import Channel

MAX_BUFFERED_BYTES = 128 * 1024
"""Bytes of frames from which on the buffer is flushed."""

_METHOD = 1
"""The type of the first frame of a message."""
_LENGTH = 4
"""Bytes before the entries of a table."""
_MARK = "nitro-own"
"""The placeholder for the values of one message in the encoded properties."""

Facts = dict[str, Any]


class Frames:
    """The buffer of what is published on a channel of py-amqp, which makes the frames, until it is flushed."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._frame = frame_writer(channel.connection, self)
        self._send = channel.send_method
        self._buffer, self._messages = bytearray(), 0
        channel.basic_publish, channel.send_method = self._publish, self._send_after

    @property
    def is_open(self) -> bool:
        """Whether the socket can be written to without blocking."""
        sock = getattr(getattr(self._channel.connection, "transport", None), "sock", None)
        return sock is not None and is_writable(sock)

    def write(self, frames: memoryview) -> None:
        """Appends a piece to the buffer; called by py-amqp, which reuses its own memory afterwards."""
        self._buffer += frames

    def flush(self, _patience: float | None = None) -> None:
        """Sends the frames of the buffer.

        Raises:
            Exception: the channel or the connection has broken.
        """
        frames = self._buffer
        if not self.discard():
            return
        connection = self._channel.connection
        if connection is None:
            raise RecoverableConnectionError("the channel is closed")
        with suppress(TimeoutError):
            connection.drain_events(timeout=0)  # as py-amqp does: the server may have closed the channel
        connection.transport.write(frames)

    def discard(self) -> int:
        """Empties the buffer and returns the number of its messages."""
        dropped, self._buffer, self._messages = self._messages, bytearray(), 0
        return dropped

    def _publish(self, message: Any, exchange: str = "", routing_key: str = "", **options: Any) -> None:
        """Appends a message to the buffer; called as `basic_publish` of the channel."""
        flags = options.get("mandatory", False), options.get("immediate", False)
        args = dumps("Bssbb", (0, exchange, routing_key, *flags))
        self._frame(_METHOD, self._channel.channel_id, Basic.Publish, args, message)
        self._messages += 1
        if len(self._buffer) >= MAX_BUFFERED_BYTES:
            self.flush()

    def _send_after(self, *method: Any, **options: Any) -> Any:
        """Flushes the buffer, then sends an AMQP method, such as a declaration; its failure closes the channel."""
        self.flush()
        return self._send(*method, **options)


def frames_of(channel: Any) -> Frames | None:
    """Returns a buffer for a channel of py-amqp; None for another channel, or if it waits for each confirm."""
    is_supported = type(channel) is Channel and hasattr(Message, "_serialize_properties")
    return Frames(channel) if is_supported and "basic_publish" not in vars(channel) else None


class FramedMessageWriter:
    """Publishes the messages of a handler on a channel of py-amqp.

    Args:
        message: the handler's first message, as it was given to the channel.
        arguments: the other arguments of `basic_publish`.
        headers: the headers that all messages have in common.
    """

    def __init__(self, channel: Any, message: Any, arguments: Facts, headers: Facts) -> None:
        self._channel, self._arguments = channel, arguments
        self._encoding = message.properties["content_encoding"]
        self._headers = _table_entries(headers)
        placeholders = {"application_headers": {_MARK: None}, "correlation_id": _MARK}
        marked = Message(**{**message.properties, **placeholders})._serialize_properties()
        self._head, after_headers = marked.split(dumps("F", [{_MARK: None}]))
        self._middle, self._tail = after_headers.split(dumps("s", [_MARK]))

    def wire_text(self, data: Any) -> bytes:
        """Returns a serialised body as the bytes that py-amqp writes."""
        return data.encode(self._encoding) if isinstance(data, str) else bytes(data)

    def write(self, wire: bytes, facts: Facts, task_id: str) -> None:
        """Publishes a message.

        Args:
            facts: the headers of this message only.

        Raises:
            Exception: what the transport raises.
        """
        table = self._headers + _table_entries(facts)
        encoded = self._head, pack(">I", len(table)), table, self._middle, dumps("s", [task_id]), self._tail
        self._channel.basic_publish(_EncodedMessage(wire, b"".join(encoded), task_id), **self._arguments)


class _EncodedMessage(Message):  # type: ignore[misc]  # no stubs
    """A message with properties that are encoded already."""

    def __init__(self, body: bytes, encoded: bytes, task_id: str) -> None:
        super().__init__(body, correlation_id=task_id)
        self._encoded_properties = encoded

    def _serialize_properties(self) -> bytes:
        return self._encoded_properties


def _table_entries(facts: Facts) -> bytes:
    """Returns the encoded entries of a table, without its length."""
    table: bytes = dumps("F", [facts])
    return table[_LENGTH:]


def is_writable(sock: Any) -> bool:
    """Whether a socket takes bytes without a wait; False for a broken one."""
    if not hasattr(select, "poll"):  # eventlet removes it
        return bool(select.select([], [sock], [], 0)[1])
    poller = select.poll()
    poller.register(sock, POLLOUT)
    return [event for _, event in poller.poll(0)] == [POLLOUT]
