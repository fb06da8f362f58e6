"""Envelopes, which carry an emission in the kwargs of its Celery tasks, and the task messages around them."""

from __future__ import annotations

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
from nitro.infrastructure.signing import is_signed, is_signing, signature_of

ENVELOPE_KEY = "__nitro__"
"""The kwarg of a task message that carries the envelope."""

_kombu_json: Callable[[Any], str] = dumps


@dataclass(slots=True, kw_only=True, eq=False)
class Envelope:
    """An envelope: the facts about an emission that a handler's message carries, and its payload as JSON text.

    Not frozen: a frozen dataclass takes three times as long to make.

    Attributes:
        sender: the description of the sender for monitoring.
        payload: sender, args and kwargs as encoded by the codec; None when the row in the outbox has them.
        bare: whether the call has no sender; in a chain, the result of the task before it is the sender.
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
        """Returns the envelope of an emission.

        Raises:
            PayloadError: a value cannot be serialised.
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
        """Returns the envelope in the kwargs of a handler's task, or None when the task was called without one.

        Args:
            args: positional arguments that a chain has put in front.

        Raises:
            PayloadUnreadable: this version of Nitro does not know the envelope's fields.
            SignatureRefused: the signature is wrong or missing.
        """
        envelope = kwargs.get(ENVELOPE_KEY)
        if is_signing() and not _is_signed(envelope, handler, args):
            raise SignatureRefused(handler)
        if envelope is None:
            return None
        try:
            return cls(**{name: value for name, value in envelope.items() if name != "signature"})
        except (TypeError, AttributeError) as error:
            raise PayloadUnreadable(f"a message for {handler} of another version: {error}") from error

    def kwargs(self, handler: str, args: Sequence[Any] = ()) -> dict[str, Any]:
        """Returns the kwargs of a handler's task with this envelope, signed for the handler when there is a key."""
        envelope = {name: getattr(self, name) for name in _ENVELOPE_FIELDS}
        if is_signing():
            envelope["signature"] = signature_of(_signed_text(envelope, handler, args))
        return {ENVELOPE_KEY: envelope}

    def __str__(self) -> str:
        """Returns the text for monitoring: a dict literal, which Flower can parse and search."""
        sender, fields = split_shown_fields(self.sender)
        facts = {"event": self.event, "sender": sender, "fields": fields, "emission": self.emission}
        return repr({name: fact for name, fact in facts.items() if fact is not None})


_ENVELOPE_FIELDS = tuple(field.name for field in fields(Envelope))


def delivery_id(emission: str, handler: str) -> str:
    """Returns the Celery task id and idempotency key of a delivery: UUIDv5 text (RFC 9562)."""
    return str(uuid5(UUID(emission), handler))


def _signed_text(envelope: Mapping[str, Any], handler: str, args: Sequence[Any]) -> str:
    """Returns the text that a signature is made of: the handler's name and everything that the handler gets."""
    args_text = _kombu_json(list(args)) if args else ""
    return json.dumps([handler, args_text, sorted(envelope.items())], separators=(",", ":"))


def _is_signed(envelope: Any, handler: str, args: Sequence[Any]) -> bool:
    if not isinstance(envelope, dict):
        return False
    unsigned = {name: value for name, value in envelope.items() if name != "signature"}
    return is_signed(_signed_text(unsigned, handler, args), envelope.get("signature"))


TRACKED_DELIVERIES = ("at-least-once", "exactly-once")
"""Values of `delivery=` that need a row in the outbox."""

ROW_OPTIONS = ("countdown", "expires")
"""Options that the row of a tracked delivery applies, so its message does not have them."""


@dataclass(slots=True, kw_only=True, eq=False)
class TaskMessage:
    """The message of an emission for one handler.

    Not frozen: a frozen dataclass takes three times as long to make.

    Attributes:
        task_id: Celery task id, the same each time the message is published.
        delivery: `delivery=` of the handler.
        mode: `entity=` of the handler.
        options: options of `Task.apply_async`.
        propagated_headers: headers from the propagators, such as a trace context.
        may_store: whether the outbox stores the message when the broker is down; else the emit raises.
        report: the report of the emission up to the dispatch, as JSON text.
        is_tracked: whether the delivery has a row in the outbox; then the message has no payload.
        queue: the queue that the row names; empty without a row.
        is_misrouted: whether the message went to `queue` while the row still names another queue.
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
        """Sets `is_tracked` from `delivery`."""
        self.is_tracked = self.delivery in TRACKED_DELIVERIES

    @property
    def message_options(self) -> dict[str, Any]:
        """The options of the Celery message, without those that the row applies."""
        if not self.is_tracked:
            return self.options
        return {name: value for name, value in self.options.items() if name not in ROW_OPTIONS}

    @property
    def kwargs(self) -> dict[str, Any]:
        """The kwargs of the Celery message."""
        envelope = replace(self.envelope, payload=None) if self.is_tracked else self.envelope
        return envelope.kwargs(self.handler)

    def record_queues(self, queues: Sequence[str]) -> None:
        """Records the queues that the message went to; the row may name any one of them."""
        if self.queue and self.queue not in queues:
            self.queue, self.is_misrouted = queues[0], True

    def publish(self, app: Celery, **overrides: Any) -> None:
        """Publishes the message through Celery; the app need not have a handler of that name.

        Args:
            overrides: options of `Task.apply_async` that replace those of the message.
        """
        options = self.message_options
        headers = {**options.get("headers", {}), **self.propagated_headers, DELIVERY_HEADER: self.delivery}
        texts = {"argsrepr": "()", "kwargsrepr": str(self.envelope)}
        # `expires` of the task class would drop the message of a tracked delivery; the row applies it.
        row_options = {"expires": None} if self.is_tracked else {}
        options = {**options, **row_options, **texts, **overrides, "headers": headers, "task_id": self.task_id}
        task = app.tasks.get(self.handler)
        if task is None:
            app.send_task(self.handler, (), self.kwargs, **options)
        else:
            task.apply_async((), self.kwargs, **options)
