"""Straight: later messages of a handler go into their queue as its first did, where kombu did no more than that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from kombu.transport import virtual
from kombu.transport.pyamqp import Channel as AMQPChannel
from kombu.utils.json import JSONEncoder

from nitro.infrastructure.offload.codec import quick_json
from nitro.infrastructure.offload.publishing.frames import Framed, Frames
from nitro.infrastructure.offload.publishing.redis import RedisPipeline, new_delivery_tag

Fields = dict[str, Any]
CapturedMessage = tuple[Any, Fields]
"""A message as it has reached the channel, and the other arguments of `basic_publish`."""

_CHANNEL_METHODS = ("basic_publish", "prepare_message", "encode_body", "_inplace_augment_message")

_encode_json: Callable[[Any], str] = JSONEncoder().encode


class DirectWriter:
    """The way of a handler's messages into a queue of a virtual transport.

    Args:
        message: the first one, as it has reached the queue.
        headers: those that all have in common.
    """

    def __init__(self, channel: Any, queue: str, message: Fields, headers: Fields) -> None:
        self._channel, self._queue = channel, queue
        self._headers, self._properties = deepcopy(headers), deepcopy(message["properties"])
        for name in ("argsrepr", "kwargsrepr"):  # they are headers
            self._properties.pop(name, None)
        self._delivery_info = self._properties.pop("delivery_info")
        self._other_fields = {
            name: fact for name, fact in message.items() if name not in ("body", "headers", "properties")
        }

    def wire_text(self, data: Any) -> str:
        """A serialised body as the channel writes it."""
        return str(self._channel.encode_body(data, self._channel.body_encoding)[0])

    def write(self, wire: str, facts: Fields, task_id: str) -> None:
        """Put in a message.

        Args:
            facts: the headers that are its own.

        Raises:
            Exception: what the transport raises.
        """
        own = {"correlation_id": task_id, "delivery_tag": new_delivery_tag(), "delivery_info": {**self._delivery_info}}
        properties, headers = {**self._properties, **own}, {**self._headers, **facts}
        self._channel._put(
            self._queue, {**self._other_fields, "body": wire, "headers": headers, "properties": properties}
        )


class RedisDirectWriter(DirectWriter):
    """The same on Redis, where a message is a text: only what differs in it is written anew."""

    def __init__(self, channel: Any, queue: str, message: Fields, headers: Fields, pipeline: RedisPipeline) -> None:
        super().__init__(channel, queue, message, headers)
        self._pipeline = pipeline
        self._list_key = channel._q_for_pri(queue, channel._get_message_priority(message, reverse=False))
        own = ("correlation_id", "delivery_tag")
        same = {name: fact for name, fact in self._properties.items() if name not in own}
        self._middle = f', {_json_members(self._other_fields)}, "headers": {{{_json_members(self._headers)}, '
        self._tail = f', "properties": {{{_json_members({**same, "delivery_info": self._delivery_info})}, '

    def wire_text(self, data: Any) -> str:
        """A serialised body as the channel writes it, in JSON."""
        return _encode_json(super().wire_text(data))

    def write(self, wire: str, facts: Fields, task_id: str) -> None:
        """Have a message pushed with the next flush."""
        own = {"correlation_id": task_id, "delivery_tag": new_delivery_tag()}
        text = f'{{"body": {wire}{self._middle}{_quick_members(facts)}}}{self._tail}{_quick_members(own)}}}}}'
        self._pipeline.add("lpush", self._list_key, text)


Way = DirectWriter | Framed
Gathering = RedisPipeline | Frames
"""Where the messages of a channel gather until they are flushed."""


def direct_writer(channel: Any, reached: CapturedMessage, headers: Fields, gathering: Gathering | None) -> Way | None:
    """The way for further messages, if the first one went straight into its queue and nobody has a hand in that."""
    message, how = reached
    if isinstance(gathering, Frames):
        return Framed(channel, message, how, headers)
    kind, queue = type(channel), how["routing_key"]
    kombus: Any = virtual.Channel
    if how["exchange"] or not all(getattr(kind, name) is getattr(kombus, name) for name in _CHANNEL_METHODS):
        return None
    if gathering is None:
        return DirectWriter(channel, queue, message, headers)
    expires = channel._expires and queue in channel._expires
    if kind._put.__module__ != "kombu.transport.redis" or expires:
        return None
    return RedisDirectWriter(channel, queue, message, headers, gathering)


@contextmanager
def capture_messages(channel: Any) -> Iterator[list[CapturedMessage]]:
    """What is published meanwhile through a channel of a virtual transport or of py-amqp."""
    reached: list[CapturedMessage] = []
    if not isinstance(channel, virtual.Channel | AMQPChannel):
        yield reached
        return
    publish: Any = channel.basic_publish

    def note(message: Any, **how: Any) -> Any:
        reached.append((message, how))
        return publish(message, **how)

    channel.basic_publish = note  # type: ignore[method-assign]  # on this one channel
    try:
        yield reached
    finally:
        channel.basic_publish = publish  # type: ignore[method-assign]  # as it was


def _json_members(facts: Fields) -> str:
    """The inside of a JSON object."""
    return _encode_json(facts)[1:-1]


def _quick_members(facts: Fields) -> str:
    """The same of what is JSON already, in a fifth of the time."""
    text = quick_json(facts)
    return _json_members(facts) if text is None else text[1:-1]
