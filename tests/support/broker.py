"""The messages of a broker: in a queue, on their way from the publisher, and held up by a fault."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select

from nitro.infrastructure import database
from nitro.infrastructure.offload import envelope
from nitro.infrastructure.offload.codec import Payload, decode
from nitro.infrastructure.offload.envelope import ENVELOPE_KEY, TaskMessage
from nitro.infrastructure.offload.options import DELIVERY_HEADER
from nitro.infrastructure.offload.publishing.channel import PublishChannel
from nitro.infrastructure.offload.publishing.connection import queue_sizes
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.offload.publishing.queue import Batch
from nitro.infrastructure.outbox.rows import payload_column
from nitro.infrastructure.outbox.schema import deliveries, emissions

__all__ = [
    "DELIVERY_HEADER",
    "ENVELOPE_KEY",
    "Sent",
    "drain_publisher",
    "is_publishing",
    "is_ready",
    "queue_sizes",
    "record_batch_sizes",
    "record_encodings",
    "taken",
    "wait_long_for_answers",
]

PATIENCE = 20.0
"""Seconds that a test waits for the publisher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A task message in the broker."""

    name: str
    id: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    embed: dict[str, Any]

    @property
    def payload(self) -> Payload:
        """Payload of the handler, from the message or from its row."""
        text = self.kwargs[ENVELOPE_KEY]["payload"]
        if text is None:
            row = select(payload_column()).select_from(deliveries.join(emissions)).where(deliveries.c.id == self.id)
            with database.engine().connect() as connection:
                text = connection.scalar(row)
        return decode(text, load=lambda cls, key: (cls, key))


def taken(app: Celery, queue: str) -> Iterator[Sent]:
    """Yields the messages of a queue of any broker, and removes each."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            args, kwargs, embed = message.decode()
            yield Sent(
                name=message.headers["task"],
                id=message.headers["id"],
                headers=message.headers,
                properties=message.properties,
                args=args,
                kwargs=kwargs,
                embed=embed,
            )


def record_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that gets the number of messages of each batch that is published from now on."""
    sizes: list[int] = []
    publish = PublishChannel.publish

    def counted(self: PublishChannel, batch: Batch, messages: Sequence[TaskMessage], *args: Any) -> Exception | None:
        sizes.append(len(messages))
        return publish(self, batch, messages, *args)

    monkeypatch.setattr(PublishChannel, "publish", counted)
    return sizes


def wait_long_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has an emit wait long for the broker, so that on a busy machine no relay publishes its messages again."""
    for name in ("FIRST_ANSWER_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(sys.modules[type(publisher).__module__], name, PATIENCE)


def drain_publisher(timeout: float = PATIENCE) -> None:
    """Waits until every message has left the process; fails after `timeout` seconds."""
    assert publisher.drain(timeout), f"messages are still to be published after {timeout:.0f} s"


def is_ready() -> bool:
    """Whether the publisher takes the broker for reachable."""
    return publisher.is_ready


def is_publishing() -> bool:
    """Whether the publisher thread is sending a batch, and no other waits."""
    return bool(publisher._queue.busy_seconds()) and not len(publisher._queue)


def record_encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that gets the mode of each serialisation of a payload from now on."""
    modes: list[str] = []
    encode = envelope.encode

    def counted(*values: Any, entity: Any = "snapshot") -> str:
        modes.append(entity)
        return encode(*values, entity=entity)

    monkeypatch.setattr(envelope, "encode", counted)
    return modes
