"""Declarations: every offloaded function under the name of its task."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from inspect import Parameter, signature, unwrap
from types import CodeType, FunctionType, MethodType
from typing import Any

from celery.utils.functional import head_from_fun

from nitro.errors import DuplicateHandler, NotOffloadable, OptionConflict
from nitro.infrastructure.offload.options import Offload
from nitro.infrastructure.offload.standin import TaskStandIn
from nitro.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """One offloaded function: its name, and the options of its one Celery task."""

    name: str
    function: Callable[..., Any]
    offload: Offload

    @property
    def place(self) -> str:
        """Where it is written, for an error message."""
        code = _code(self.function)
        return f"{self.function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


declared: dict[str, Declaration] = {}
"""All of them in this process, by name."""

announce: list[Callable[[Declaration], None]] = []
"""Who makes a Celery task of each new one."""


def time_limits() -> dict[str, float]:
    """Seconds that a run of a handler may take, by the name of each that has a limit of its own."""
    given = {name: (each.offload.soft_time_limit, each.offload.time_limit) for name, each in list(declared.items())}
    return {name: max(limit or 0.0 for limit in limits) for name, limits in given.items() if any(limits)}


def declare(function: Callable[..., Any], name: str, offload: object) -> tuple[Offload, Callable[..., Any] | None]:
    """Check and keep an offloaded function; return its options, and the older definition that it replaces.

    A function of the same qualified name in the same file is a redefinition (a reload, a notebook
    cell) and replaces the older one; within one first import of the module it is a second handler.

    Raises:
        DeclarationError: an option is wrong, the name is taken, or a worker could never find the function.
    """
    _check_offloadable(function, name)
    options = _promised(Offload.of(offload))
    new = Declaration(name=name, function=function, offload=options)
    known = declared.get(name)
    if known is not None and known.function is function:
        if conflicting := known.offload.differs(options):
            raise OptionConflict(name, conflicting)
        return options, None
    if known is not None and not _redefines(function, known.function):
        raise DuplicateHandler(name, known.place, new.place)
    for tell in announce:
        tell(new)
    declared[name] = new
    function.task = TaskStandIn(name)  # type: ignore[attr-defined]  # that is how a task is reached
    return options, None if known is None else known.function


def _promised(options: Offload) -> Offload:
    """The options with their promise: the given one, else `NITRO_DELIVERY`."""
    return options.model_copy(update={"delivery": options.delivery or Settings.load().delivery})


def _check_offloadable(function: Any, name: str) -> None:
    """See that a worker that imports the function's module will find it.

    Raises:
        NotOffloadable: it would not; says why and the way out.
    """
    way_out = "offload a function at module level that does the call"
    if isinstance(function, MethodType):
        raise NotOffloadable(name, "it is a bound method, and its object does not exist in the worker", way_out)
    if isinstance(function, partial):
        raise NotOffloadable(name, "it is a partial, and its arguments do not exist in the worker", way_out)
    if not isinstance(function, FunctionType):
        raise NotOffloadable(name, f"it is an instance of {type(function).__name__}, not a function", way_out)
    local = "<locals>" in function.__qualname__ or function.__name__ == "<lambda>"
    if local and name.endswith(function.__qualname__):
        what = "a lambda" if function.__name__ == "<lambda>" else "a nested function"
        raise NotOffloadable(name, f"it is {what}, which has no name that a worker could know", "give it name=")
    if name == f"__main__.{function.__qualname__}":
        raise NotOffloadable(name, "it is defined in an interactive session", "give it name=, or put it in a module")


def _redefines(new: Callable[..., Any], old: Callable[..., Any]) -> bool:
    """Whether it is the same definition anew; in an interactive session each cell is a file of its own.

    A second definition while the module is imported for the first time is none: it would silently drop the first.
    """
    (new_code, old_code), module = map(_code, (new, old)), sys.modules.get(new.__module__)
    interactive = new.__module__ == "__main__" and not hasattr(module, "__file__")
    if new.__qualname__ != old.__qualname__ or not (interactive or _file(new_code) == _file(old_code)):
        return False
    first_import = getattr(getattr(module, "__spec__", None), "_initializing", False)
    return not first_import or new_code.co_firstlineno == old_code.co_firstlineno


def _code(function: Callable[..., Any]) -> CodeType:
    """The code of the function as it is written, beneath its decorators."""
    code: CodeType = unwrap(function).__code__
    return code


def _file(code: CodeType) -> str:
    return os.path.realpath(code.co_filename)


@cache
def header(function: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the arguments that `function` takes, else raises its TypeError, and does nothing."""
    parameters = signature(function).parameters.values()
    if not function.__name__.isidentifier() or any(p.kind is Parameter.POSITIONAL_ONLY for p in parameters):
        return signature(function).bind  # what Celery makes knows neither lambdas nor the `/`
    head: Callable[..., Any] = head_from_fun(function)
    return head
