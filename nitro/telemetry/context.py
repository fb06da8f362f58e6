"""Context: variables of the user's, such as a request id or a tenant, that handlers find as they were at the emit."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from nitro.errors import ContextStays
from nitro.infrastructure.events import Emission
from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.carriers import Headers, carriers
from nitro.infrastructure.offload.delivery import Delivery
from nitro.settings import signing_key

logger = logger_named("nitro.worker")

HEADER = "nitro_context"
"""Message header: `{name: value}` as JSON text, which every broker brings back as it was."""
MOST = 16 * 1024
"""Bytes of that text: RabbitMQ's connection ends with a header of more than 128 KiB."""
SIGNATURE = "nitro_context_signature"
"""Message header: of that text, where messages are signed."""


def carry(*variables: ContextVar[Any]) -> None:
    """Have context variables travel with every emission to its offloaded handlers, under their names.

    Their values must be JSON: texts, numbers, truth values, None, lists and dicts of these. Call it where emitters and
    workers import it, before the first emit.

    Raises:
        ContextStays: two different variables have one name.
    """
    for variable in variables:
        if _carried.variables.setdefault(variable.name, variable) is not variable:
            raise ContextStays(variable.name, "another variable of that name travels already")
    if _carried not in carriers:
        carriers.append(_carried)


class ContextVariables:
    """The carrier of context variables; signed with `NITRO_SIGNING_KEY`, because a tenant decides on what is done."""

    def __init__(self) -> None:
        self.variables: dict[str, ContextVar[Any]] = {}

    def give(self, emission: Emission) -> Headers:
        """The values of those that are set.

        Raises:
            ContextStays: a value is not JSON, or all are too much for a header.
        """
        missing = object()
        found = {name: variable.get(missing) for name, variable in self.variables.items()}
        values = {name: value for name, value in found.items() if value is not missing}
        if not values:
            return {}
        for name, value in values.items():
            _check(name, value)
        text = json.dumps(values)
        if len(text) > MOST:
            raise ContextStays(", ".join(values), f"{len(text)} bytes are more than the {MOST} of a message header")
        signature = _signature(text, emission.id)
        return {HEADER: text} if signature is None else {HEADER: text, SIGNATURE: signature}

    @contextmanager
    def take(self, headers: Headers, delivery: Delivery) -> Iterator[None]:
        """Set them for a run of a handler; what is not signed as it must be is not set, which the log says."""
        values = _values(headers, delivery.emission)
        known = {self.variables[name]: value for name, value in values.items() if name in self.variables}
        tokens = [(variable, variable.set(value)) for variable, value in known.items()]
        try:
            yield
        finally:
            for variable, token in reversed(tokens):
                variable.reset(token)


_carried = ContextVariables()


def _check(name: str, value: Any) -> None:
    try:
        back = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ContextStays(name, str(error)) from error
    if repr(back) != repr(value):  # a text may be equal to a member of an enum
        raise ContextStays(name, f"{value!r} does not come back from JSON as it is")


def _values(headers: Headers, emission: str) -> dict[str, Any]:
    text = headers.get(HEADER)
    if text is None:
        return {}
    wanted = _signature(text, emission)
    if wanted is not None and not hmac.compare_digest(
        wanted.encode(), str(headers.get(SIGNATURE)).encode(errors="replace")
    ):
        logger.error("context of emission %s is refused: it is not signed as it must be", emission)
        return {}
    values: dict[str, Any] = json.loads(text)
    return values


def _signature(text: str, emission: str) -> str | None:
    key = signing_key()
    if key is None:
        return None
    return hmac.digest(key.encode(), json.dumps([emission, text]).encode(), "sha256").hex()
