"""Message: what one emission puts into the kwargs of its Celery tasks."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from celery import Celery
from kombu.utils.json import dumps
from uuid_utils import UUID, uuid5

from nitro.errors import PayloadUnreadable, SignatureRefused
from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.display import describe_sender, split_shown_fields
from nitro.infrastructure.events.ports import Call
from nitro.infrastructure.offload.codec import encode
from nitro.infrastructure.offload.options import DELIVERY_HEADER, DeliveryGuarantee, EntityMode
from nitro.settings import signing_key

ENVELOPE_KEY = "__nitro__"
"""The one kwarg of a task message that carries an emission."""

_kombu_json: Callable[[Any], str] = dumps


@dataclass(slots=True, kw_only=True, eq=False)
class Envelope:
    """An emission on its way to a handler; plain JSON but for the payload, which is JSON text of its own.

    Not frozen, which would triple the cost of making one.

    Attributes:
        sender: what monitoring shows of the sender.
        payload: sender, args and kwargs as the codec wrote them; None when they stay in the outbox.
        bare: the caller gave no sender: it comes from what a chain puts before.
    """

    emission: str
    root: str | None
    parent: str | None
    event: str | None
    sender: str
    payload: str | None
    bare: bool = False

    @classmethod
    def of(cls, emission: Emission, call: Call, entity: EntityMode) -> Envelope:
        """The message of an emission.

        Raises:
            PayloadError: a value cannot travel.
        """
        return cls(
            emission=emission.id,
            root=emission.root,
            parent=emission.parent,
            event=emission.event or None,
            sender=describe_sender(call.sender),
            payload=encode(call.sender, call.args, call.kwargs, entity=entity),
        )

    @classmethod
    def read(cls, kwargs: Mapping[str, Any], handler: str, args: Sequence[Any] = ()) -> Envelope | None:
        """The message in the kwargs of a handler's task, or None when the task was called without one.

        Args:
            args: what a chain put before.

        Raises:
            PayloadUnreadable: it is not of a shape that this version knows.
            SignatureRefused: its signature is wrong or missing.
        """
        envelope = kwargs.get(ENVELOPE_KEY)
        key = signing_key()
        if key is not None and not _is_signed(envelope, handler, args, key):
            raise SignatureRefused(handler)
        if envelope is None:
            return None
        try:
            return cls(**{name: value for name, value in envelope.items() if name != "signature"})
        except (TypeError, AttributeError) as error:
            raise PayloadUnreadable(f"a message for {handler} of another version: {error}") from error

    def kwargs(self, handler: str, args: Sequence[Any] = ()) -> dict[str, Any]:
        """The kwargs of a handler's task that carry it, signed for that handler when there is a key."""
        envelope = {name: getattr(self, name) for name in _ENVELOPE_FIELDS}
        key = signing_key()
        return {
            ENVELOPE_KEY: envelope
            if key is None
            else {**envelope, "signature": _signature(envelope, handler, args, key)}
        }

    def __str__(self) -> str:
        """What monitoring shows: a dict literal, as Flower parses it to search in it."""
        sender, fields = split_shown_fields(self.sender)
        facts = {"event": self.event, "sender": sender, "fields": fields, "emission": self.emission}
        return repr({name: fact for name, fact in facts.items() if fact is not None})


_ENVELOPE_FIELDS = tuple(field.name for field in fields(Envelope))


def is_signing() -> bool:
    """Whether messages are signed, so that each handler gets one of its own."""
    return signing_key() is not None


def delivery_id(emission: str, handler: str) -> str:
    """The Celery task id and idempotency key of one handler of one emission: UUIDv5 text (RFC 9562)."""
    return str(uuid5(UUID(emission), handler))


def _signature(envelope: Mapping[str, Any], handler: str, args: Sequence[Any], key: str) -> str:
    """HMAC-SHA256 over all that the handler gets and its name, so that nothing can be exchanged."""
    before = _kombu_json(list(args)) if args else ""
    signed = json.dumps([handler, before, sorted(envelope.items())], separators=(",", ":"))
    return hmac.digest(key.encode(), signed.encode(), "sha256").hex()


def _is_signed(envelope: Any, handler: str, args: Sequence[Any], key: str) -> bool:
    if not isinstance(envelope, dict) or not isinstance(envelope.get("signature"), str):
        return False
    facts = {name: value for name, value in envelope.items() if name != "signature"}
    signature = envelope["signature"].encode(errors="replace")  # which may be any text
    return hmac.compare_digest(_signature(facts, handler, args, key).encode(), signature)


TRACKED_DELIVERIES = ("at-least-once", "exactly-once")
"""The promises that are kept by a row in the outbox."""

ROW_OPTIONS = ("countdown", "expires")
"""Options that the row of a tracked delivery sees to, and no message."""


@dataclass(slots=True, kw_only=True, eq=False)
class TaskMessage:
    """One handler's message of an emission; not frozen, which would triple the cost of making one.

    Attributes:
        task_id: Celery task id, the same for all its messages.
        delivery: `delivery=` of the handler.
        mode: `entity=` of the handler.
        options: of `Task.apply_async`.
        propagated_headers: headers of its message that its emission sends along.
        may_store: what cannot be sent waits in the outbox; else it is an error.
        report: what became of its emission before, as JSON text.
        is_tracked: whether a row decides on its fate, so that its message only says which.
        queue: the queue that its row names; empty without a row.
        is_misrouted: whether its message went to that queue and the row still names another one.
    """

    handler: str
    task_id: str
    envelope: Envelope
    delivery: DeliveryGuarantee
    mode: EntityMode = "snapshot"
    options: dict[str, Any] = field(default_factory=dict)
    propagated_headers: dict[str, Any] = field(default_factory=dict)
    may_store: bool = True
    report: str | None = None
    queue: str = ""
    is_misrouted: bool = False
    is_tracked: bool = field(init=False)

    def __post_init__(self) -> None:
        """Tells what depends on the promise."""
        self.is_tracked = self.delivery in TRACKED_DELIVERIES

    @property
    def message_options(self) -> dict[str, Any]:
        """The options of its message."""
        if not self.is_tracked:
            return self.options
        return {name: value for name, value in self.options.items() if name not in ROW_OPTIONS}

    @property
    def kwargs(self) -> dict[str, Any]:
        """The kwargs of its message."""
        envelope = replace(self.envelope, payload=None) if self.is_tracked else self.envelope
        return envelope.kwargs(self.handler)

    def record_queues(self, queues: Sequence[str]) -> None:
        """Notes the queues that its message went to; any of them is good for its row."""
        if self.queue and self.queue not in queues:
            self.queue, self.is_misrouted = queues[0], True

    def publish(self, app: Celery, **how: Any) -> None:
        """Have Celery send it as a task of the app, which need not have a handler of that name."""
        options = self.message_options
        headers = {**options.get("headers", {}), **self.propagated_headers, DELIVERY_HEADER: self.delivery}
        shown = {"argsrepr": "()", "kwargsrepr": str(self.envelope)}
        by_row = {"expires": None} if self.is_tracked else {}  # else the class of the task may have the message expire
        options = {**options, **by_row, **shown, **how, "headers": headers, "task_id": self.task_id}
        task = app.tasks.get(self.handler)
        if task is None:
            app.send_task(self.handler, (), self.kwargs, **options)
        else:
            task.apply_async((), self.kwargs, **options)
