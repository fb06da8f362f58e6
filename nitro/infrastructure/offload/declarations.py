"""Declarations: every offloaded function under the name of its task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from inspect import Parameter, signature, unwrap
from types import CodeType, FunctionType, MethodType
from typing import Any

from celery.utils.functional import head_from_fun

from nitro.errors import DuplicateHandler, NotOffloadable, OptionConflict
from nitro.infrastructure.events.definition import Definition
from nitro.infrastructure.events.registration import check_takes_sender
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.options import Offload
from nitro.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """One offloaded function: its name, and the options of its one Celery task."""

    name: str
    function: Callable[..., Any]
    offload: Offload
    definition: Definition | None

    def is_redefinition_of(self, old: Declaration) -> bool:
        """Whether it is `old` anew."""
        if self.definition is None or old.definition is None:
            return False
        return self.definition.redefines(old.definition) or self.definition.shares_code_with(old.definition)

    @property
    def location(self) -> str:
        """Where it is written, for an error message."""
        code = _undecorated_code(self.function)
        return f"{self.function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


declarations_by_name: dict[str, Declaration] = {}
"""All of them in this process, by name."""

declaration_hooks: list[Callable[[Declaration], None]] = []
"""Who makes a Celery task of each new one."""


def time_limits() -> dict[str, float]:
    """Seconds that a run of a handler may take, by the name of each that has a limit of its own."""
    given = {
        name: (each.offload.soft_time_limit, each.offload.time_limit)
        for name, each in list(declarations_by_name.items())
    }
    return {name: max(limit or 0.0 for limit in limits) for name, limits in given.items() if any(limits)}


def declare(function: Callable[..., Any], name: str, offload: object) -> Offload:
    """Check and keep an offloaded function, in place of an older definition of it; return its options.

    Raises:
        DeclarationError: an option is wrong, the name is taken, or a worker could never find the function.
    """
    _check_offloadable(function, name)
    check_takes_sender(name, function)
    options = _with_delivery(Offload.of(offload))
    new = Declaration(name=name, function=function, offload=options, definition=Definition.of(function))
    known = declarations_by_name.get(name)
    if known is not None and known.function is function:
        if conflicting := known.offload.conflicting_options(options):
            raise OptionConflict(name, conflicting)
        return options
    if known is not None and not new.is_redefinition_of(known):
        raise DuplicateHandler(name, known.location, new.location)
    for tell in declaration_hooks:
        tell(new)
    declarations_by_name[name] = new
    function.task = TaskProxy(name)  # type: ignore[attr-defined]  # that is how a task is reached
    return options


def _with_delivery(options: Offload) -> Offload:
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


def _undecorated_code(function: Callable[..., Any]) -> CodeType:
    """The code of the function as it is written, beneath its decorators."""
    code: CodeType = unwrap(function).__code__
    return code


@cache
def argument_checker(function: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the arguments that `function` takes, else raises its TypeError, and does nothing."""
    parameters = signature(function).parameters.values()
    if not function.__name__.isidentifier() or any(p.kind is Parameter.POSITIONAL_ONLY for p in parameters):
        return signature(function).bind  # what Celery makes knows neither lambdas nor the `/`
    head: Callable[..., Any] = head_from_fun(function)
    return head


class TaskProxy:
    """The Celery task of a handler, looked up in the current app whenever it is used."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(current_app().tasks[self.name], attribute)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the handler here, as calling a Celery task does."""
        return current_app().tasks[self.name](*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task of handler {self.name}>"
