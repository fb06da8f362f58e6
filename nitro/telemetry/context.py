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
"""Message header: `{"values": {name: value}, "signature": text or null}`."""


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
            ContextStays: a value is not JSON.
        """
        missing = object()
        found = {name: variable.get(missing) for name, variable in self.variables.items()}
        values = {name: value for name, value in found.items() if value is not missing}
        for name, value in values.items():
            _check(name, value)
        return {HEADER: {"values": values, "signature": _signature(values, emission.id)}} if values else {}

    @contextmanager
    def take(self, headers: Headers, delivery: Delivery) -> Iterator[None]:
        """Set them for a run of a handler; what is not signed as it must be is not set, which the log says."""
        sent = headers.get(HEADER) or {}
        values = sent.get("values", {})
        if values and not _is_signed(sent, delivery.emission):
            logger.error("context of emission %s is refused: it is not signed as it must be", delivery.emission)
            values = {}
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
        same = json.loads(json.dumps(value)) == value
    except (TypeError, ValueError) as error:
        raise ContextStays(name, str(error)) from error
    if not same:
        raise ContextStays(name, f"{value!r} does not come back from JSON as it is")


def _signature(values: dict[str, Any], emission: str) -> str | None:
    key = signing_key()
    if key is None:
        return None
    return hmac.digest(key.encode(), json.dumps([emission, sorted(values.items())]).encode(), "sha256").hex()


def _is_signed(sent: dict[str, Any], emission: str) -> bool:
    wanted = _signature(sent["values"], emission)
    return wanted is None or hmac.compare_digest(wanted, str(sent.get("signature")))
