"""Message: what one emission puts into the kwargs of its Celery tasks."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kombu.utils.json import dumps
from uuid_utils import UUID, uuid5

from nitro.errors import PayloadUnreadable, SignatureRefused
from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.dispatcher import Call
from nitro.infrastructure.events.shown import apart, shown
from nitro.infrastructure.offload.codec import encode
from nitro.infrastructure.offload.options import Entities
from nitro.settings import signing_key

KEY = "__nitro__"
"""The one kwarg of a task message that carries an emission."""

_as_celery_sends: Callable[[Any], str] = dumps


@dataclass(slots=True, kw_only=True, eq=False)
class Message:
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
    def of(cls, emission: Emission, call: Call, entity: Entities) -> Message:
        """The message of an emission.

        Raises:
            PayloadError: a value cannot travel.
        """
        return cls(
            emission=emission.id,
            root=emission.root,
            parent=emission.parent,
            event=emission.event or None,
            sender=shown(call.sender),
            payload=encode(call.sender, call.args, call.kwargs, entity=entity),
        )

    @classmethod
    def read(cls, kwargs: Mapping[str, Any], handler: str, args: Sequence[Any] = ()) -> Message | None:
        """The message in the kwargs of a handler's task, or None when the task was called without one.

        Args:
            args: what a chain put before.

        Raises:
            PayloadUnreadable: it is not of a shape that this version knows.
            SignatureRefused: its signature is wrong or missing.
        """
        envelope = kwargs.get(KEY)
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
        envelope = {name: getattr(self, name) for name in _FIELDS}
        key = signing_key()
        return {KEY: envelope if key is None else {**envelope, "signature": _signature(envelope, handler, args, key)}}

    def __str__(self) -> str:
        """What monitoring shows: a dict literal, as Flower parses it to search in it."""
        sender, fields = apart(self.sender)
        facts = {"event": self.event, "sender": sender, "fields": fields, "emission": self.emission}
        return repr({name: fact for name, fact in facts.items() if fact is not None})


_FIELDS = tuple(field.name for field in fields(Message))


def is_signing() -> bool:
    """Whether messages are signed, so that each handler gets one of its own."""
    return signing_key() is not None


def delivery_id(emission: str, handler: str) -> str:
    """The Celery task id and idempotency key of one handler of one emission: UUIDv5 text (RFC 9562)."""
    return str(uuid5(UUID(emission), handler))


def _signature(envelope: Mapping[str, Any], handler: str, args: Sequence[Any], key: str) -> str:
    """HMAC-SHA256 over all that the handler gets and its name, so that nothing can be exchanged."""
    before = _as_celery_sends(list(args)) if args else ""
    signed = json.dumps([handler, before, sorted(envelope.items())], separators=(",", ":"))
    return hmac.digest(key.encode(), signed.encode(), "sha256").hex()


def _is_signed(envelope: Any, handler: str, args: Sequence[Any], key: str) -> bool:
    if not isinstance(envelope, dict) or not isinstance(envelope.get("signature"), str):
        return False
    facts = {name: value for name, value in envelope.items() if name != "signature"}
    signature = envelope["signature"].encode(errors="replace")  # which may be any text
    return hmac.compare_digest(_signature(facts, handler, args, key).encode(), signature)
