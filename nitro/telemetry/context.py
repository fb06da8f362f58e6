"""Context: variables of the user's, such as a request id or a tenant, that handlers find as they were at the emit."""

from __future__ import annotations

import hmac
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

from nitro.errors import ContextNotSerializable
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


NAMESAKE = (
    "another variable of that name travels already; give it another name, or if it is the same one of a module "
    "that was reloaded, call carry() in that module, at its top level"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module has called `carry` while it was executed.

    Attributes:
        first: whether that was its first import, and no reload.
    """

    file: str
    line: int
    first: bool

    def is_again(self, earlier: Place | None) -> bool:
        """Whether this is the same call anew; two calls within one first import are different ones."""
        if earlier is None or earlier.file != self.file:
            return False
        return not self.first or earlier.line == self.line


def carry(*variables: ContextVar[Any]) -> None:
    """Have context variables travel with every emission to its offloaded handlers, under their names.

    Their values must be JSON: texts, numbers, truth values, None, lists and dicts of these. Call it where emitters and
    workers import it, before the first emit.

    One that is made anew when its module is reloaded takes the place of the older one, if this is called there, at the
    top level.

    Raises:
        ContextNotSerializable: two different variables have one name.
    """
    place = _place(sys._getframe(1))
    for variable in variables:
        _carried.add(variable, place)
    if _carried not in carriers:
        carriers.append(_carried)


class ContextVariables:
    """The carrier of context variables; signed with `NITRO_SIGNING_KEY`, because a tenant decides on what is done."""

    def __init__(self) -> None:
        self.variables: dict[str, ContextVar[Any]] = {}
        self._places: dict[str, Place | None] = {}

    def add(self, variable: ContextVar[Any], place: Place | None) -> None:
        """Have one more travel, or one that takes the place of its older self.

        Raises:
            ContextNotSerializable: another one has its name.
        """
        known = self.variables.get(variable.name)
        if known is variable:
            return
        if known is not None and (place is None or not place.is_again(self._places[variable.name])):
            raise ContextNotSerializable(variable.name, NAMESAKE)
        self.variables[variable.name], self._places[variable.name] = variable, place

    def give(self, emission: Emission) -> Headers:
        """The values of those that are set.

        Raises:
            ContextNotSerializable: a value is not JSON, or all are too much for a header.
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
            raise ContextNotSerializable(
                ", ".join(values), f"{len(text)} bytes are more than the {MOST} of a message header"
            )
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


def _place(caller: FrameType) -> Place | None:
    """The place of a call at the top level of a module; in an interactive session each cell is a file of its own."""
    if caller.f_code.co_name != "<module>":
        return None
    module = caller.f_globals
    is_script = module.get("__name__") == "__main__"
    if is_script and "__file__" not in module:
        return Place("", caller.f_lineno, first=False)
    first = is_script or getattr(module.get("__spec__"), "_initializing", False)
    return Place(os.path.realpath(caller.f_code.co_filename), caller.f_lineno, first=first)


def _check(name: str, value: Any) -> None:
    try:
        back = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ContextNotSerializable(name, str(error)) from error
    if repr(back) != repr(value):  # a text may be equal to a member of an enum
        raise ContextNotSerializable(name, f"{value!r} does not come back from JSON as it is")


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
