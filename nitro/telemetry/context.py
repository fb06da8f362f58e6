"""Context: variables of the user's, such as a request id or a tenant, that handlers find as they were at the emit."""

from __future__ import annotations

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
from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.delivery import Delivery
from nitro.infrastructure.offload.propagation import Headers, propagators
from nitro.infrastructure.signing import is_signed, signature_of

logger = get_logger("nitro.worker")

CONTEXT_HEADER = "nitro_context"
"""Message header: `{name: value}` as JSON text, which every broker brings back as it was."""
MAX_HEADER_BYTES = 16 * 1024
"""Bytes of that text: RabbitMQ's connection ends with a header of more than 128 KiB."""
SIGNATURE_HEADER = "nitro_context_signature"
"""Message header: of that text, where messages are signed."""


DUPLICATE_NAME_MESSAGE = (
    "another variable of that name travels already; give it another name, or if it is the same one of a module "
    "that was reloaded, call carry() in that module, at its top level"
)


@dataclass(frozen=True, slots=True)
class CallSite:
    """Where a module has called `carry` while it was executed.

    Attributes:
        is_first_import: whether that was its first import, and no reload.
    """

    file: str
    line: int
    is_first_import: bool

    def is_same_call(self, earlier: CallSite | None) -> bool:
        """Whether this is the same call anew; two calls within one first import are different ones."""
        if earlier is None or earlier.file != self.file:
            return False
        return not self.is_first_import or earlier.line == self.line


def carry(*variables: ContextVar[Any]) -> None:
    """Have context variables travel with every emission to its offloaded handlers, under their names.

    Their values must be JSON: texts, numbers, truth values, None, lists and dicts of these. Call it where emitters and
    workers import it, before the first emit.

    One that is made anew when its module is reloaded takes the place of the older one, if this is called there, at the
    top level.

    Raises:
        ContextNotSerializable: two different variables have one name.
    """
    place = _call_site_of(sys._getframe(1))
    for variable in variables:
        _propagator.add(variable, place)
    propagators.add(_propagator)


class ContextPropagator:
    """The carrier of context variables; signed with `NITRO_SIGNING_KEY`, because a tenant decides on what is done."""

    def __init__(self) -> None:
        self.variables: dict[str, ContextVar[Any]] = {}
        self._call_sites: dict[str, CallSite | None] = {}

    def add(self, variable: ContextVar[Any], place: CallSite | None) -> None:
        """Have one more travel, or one that takes the place of its older self.

        Raises:
            ContextNotSerializable: another one has its name.
        """
        known = self.variables.get(variable.name)
        if known is variable:
            return
        if known is not None and (place is None or not place.is_same_call(self._call_sites[variable.name])):
            raise ContextNotSerializable(variable.name, DUPLICATE_NAME_MESSAGE)
        self.variables[variable.name], self._call_sites[variable.name] = variable, place

    def inject(self, emission: Emission) -> Headers:
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
            _check_value(name, value)
        text = json.dumps(values)
        if len(text) > MAX_HEADER_BYTES:
            raise ContextNotSerializable(
                ", ".join(values), f"{len(text)} bytes are more than the {MAX_HEADER_BYTES} of a message header"
            )
        signature = signature_of(_signed_text(text, emission.id))
        return {CONTEXT_HEADER: text} if signature is None else {CONTEXT_HEADER: text, SIGNATURE_HEADER: signature}

    @contextmanager
    def extract(self, headers: Headers, delivery: Delivery) -> Iterator[None]:
        """Set them for a run of a handler; what is not signed as it must be is not set, which the log says."""
        values = _verified_values(headers, delivery.emission)
        known = {self.variables[name]: value for name, value in values.items() if name in self.variables}
        tokens = [(variable, variable.set(value)) for variable, value in known.items()]
        try:
            yield
        finally:
            for variable, token in reversed(tokens):
                variable.reset(token)


_propagator = ContextPropagator()


def _call_site_of(caller: FrameType) -> CallSite | None:
    """The place of a call at the top level of a module; in an interactive session each cell is a file of its own."""
    if caller.f_code.co_name != "<module>":
        return None
    module = caller.f_globals
    is_script = module.get("__name__") == "__main__"
    if is_script and "__file__" not in module:
        return CallSite("", caller.f_lineno, is_first_import=False)
    first = is_script or getattr(module.get("__spec__"), "_initializing", False)
    return CallSite(os.path.realpath(caller.f_code.co_filename), caller.f_lineno, is_first_import=first)


def _check_value(name: str, value: Any) -> None:
    try:
        back = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ContextNotSerializable(name, str(error)) from error
    if repr(back) != repr(value):  # a text may be equal to a member of an enum
        raise ContextNotSerializable(name, f"{value!r} does not come back from JSON as it is")


def _verified_values(headers: Headers, emission: str) -> dict[str, Any]:
    text = headers.get(CONTEXT_HEADER)
    if text is None:
        return {}
    if not is_signed(_signed_text(text, emission), headers.get(SIGNATURE_HEADER)):
        logger.error("context of emission %s is refused: it is not signed as it must be", emission)
        return {}
    values: dict[str, Any] = json.loads(text)
    return values


def _signed_text(text: str, emission: str) -> str:
    return json.dumps([emission, text])
