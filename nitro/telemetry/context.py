"""Propagation of the user's context variables, such as a request id or a tenant, from an emit to its handlers."""

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
"""Message header: `{name: value}` as JSON text, which no broker changes."""
MAX_HEADER_BYTES = 16 * 1024
"""Maximum bytes of the context header. RabbitMQ closes the connection when headers exceed 128 KiB."""
SIGNATURE_HEADER = "nitro_context_signature"
"""Message header: the signature of the context header, if messages are signed."""


DUPLICATE_NAME_MESSAGE = (
    "another variable of that name is carried already; give this one another name. If a reloaded module has created "
    "it anew, call carry() in that module, at its top level"
)


@dataclass(frozen=True, slots=True)
class CallSite:
    """The place of a call of `carry` at the top level of a module.

    Attributes:
        is_first_import: whether the module was being imported for the first time, not reloaded.
    """

    file: str
    line: int
    is_first_import: bool

    def is_same_call(self, earlier: CallSite | None) -> bool:
        """Whether this is a repetition of an earlier call. Two lines of one first import are different calls."""
        if earlier is None or earlier.file != self.file:
            return False
        return not self.is_first_import or earlier.line == self.line


def carry(*variables: ContextVar[Any]) -> None:
    """Sends the values of context variables with every emission to its offloaded handlers.

    The values must be JSON: texts, numbers, truth values, None, lists and dicts of these. Call `carry` before the first
    emit, in a module that emitters and workers import.

    A reloaded module creates its variables again. They replace the older ones, if `carry` is called in that module, at
    its top level.

    Raises:
        ContextNotSerializable: two different variables have the same name.
    """
    call_site = _call_site_of(sys._getframe(1))
    for variable in variables:
        _propagator.add(variable, call_site)
    propagators.add(_propagator)


class ContextPropagator:
    """The propagator of context variables.

    Its header is signed with `NITRO_SIGNING_KEY`: a forged tenant would change the effect of a handler.
    """

    def __init__(self) -> None:
        self.variables: dict[str, ContextVar[Any]] = {}
        self._call_sites: dict[str, CallSite | None] = {}

    def add(self, variable: ContextVar[Any], call_site: CallSite | None) -> None:
        """Adds a variable, or replaces the variable of a module that was reloaded.

        Raises:
            ContextNotSerializable: another variable has the same name.
        """
        current = self.variables.get(variable.name)
        if current is variable:
            return
        if current is not None and (call_site is None or not call_site.is_same_call(self._call_sites[variable.name])):
            raise ContextNotSerializable(variable.name, DUPLICATE_NAME_MESSAGE)
        self.variables[variable.name], self._call_sites[variable.name] = variable, call_site

    def inject(self, emission: Emission) -> Headers:
        """Returns the headers with the values of the variables that are set.

        Raises:
            ContextNotSerializable: a value is not JSON, or the values are too large for a header.
        """
        missing = object()
        all_values = {name: variable.get(missing) for name, variable in self.variables.items()}
        values = {name: value for name, value in all_values.items() if value is not missing}
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
        """Sets the variables for a run of a handler. Values with a wrong signature are not set, which is logged."""
        values = _verified_values(headers, delivery.emission)
        variable_values = {self.variables[name]: value for name, value in values.items() if name in self.variables}
        tokens = [(variable, variable.set(value)) for variable, value in variable_values.items()]
        try:
            yield
        finally:
            for variable, token in reversed(tokens):
                variable.reset(token)


_propagator = ContextPropagator()


def _call_site_of(caller: FrameType) -> CallSite | None:
    """Returns the place of a call at the top level of a module, else None.

    In an interactive session the file is "", because each cell has a file name of its own.
    """
    if caller.f_code.co_name != "<module>":
        return None
    module = caller.f_globals
    is_script = module.get("__name__") == "__main__"
    if is_script and "__file__" not in module:
        return CallSite("", caller.f_lineno, is_first_import=False)
    is_first_import = is_script or getattr(module.get("__spec__"), "_initializing", False)
    return CallSite(os.path.realpath(caller.f_code.co_filename), caller.f_lineno, is_first_import=is_first_import)


def _check_value(name: str, value: Any) -> None:
    try:
        copy = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ContextNotSerializable(name, str(error)) from error
    if repr(copy) != repr(value):  # repr(): a member of a str enum equals its text
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
