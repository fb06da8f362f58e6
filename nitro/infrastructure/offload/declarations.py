"""Declarations: the registry of offloaded functions, by the name of their task."""

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
from nitro.infrastructure.hooks import Hooks
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.options import Offload
from nitro.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """An offloaded function, its name, and the options of its Celery task."""

    name: str
    function: Callable[..., Any]
    offload: Offload
    definition: Definition | None

    def is_redefinition_of(self, old: Declaration) -> bool:
        """Whether it is a new definition of the function of `old`, such as after a reload."""
        if self.definition is None or old.definition is None:
            return False
        return self.definition.redefines(old.definition) or self.definition.shares_code_with(old.definition)

    @property
    def location(self) -> str:
        """The function with file and line, for an error message."""
        code = _undecorated_code(self.function)
        return f"{self.function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


declarations_by_name: dict[str, Declaration] = {}
"""All declarations of this process, by handler name."""

declaration_hooks: Hooks[Callable[[Declaration], None]] = Hooks()
"""Functions that are called with each new declaration, such as the one that makes its Celery task."""


def time_limits() -> dict[str, float]:
    """Returns the time limit in seconds of each handler that has one of its own, by name."""
    limits_by_name = {
        name: (declaration.offload.soft_time_limit, declaration.offload.time_limit)
        for name, declaration in list(declarations_by_name.items())
    }
    return {name: max(limit or 0.0 for limit in limits) for name, limits in limits_by_name.items() if any(limits)}


def declare(function: Callable[..., Any], name: str, offload: object) -> Offload:
    """Checks and registers an offloaded function, in place of an older definition of it, and returns its options.

    Raises:
        DeclarationError: an option is wrong, the name is taken, or a worker could never find the function.
    """
    _check_offloadable(function, name)
    check_takes_sender(name, function)
    options = _with_delivery(Offload.of(offload))
    new = Declaration(name=name, function=function, offload=options, definition=Definition.of(function))
    registered = declarations_by_name.get(name)
    if registered is not None and registered.function is function:
        if conflicting := registered.offload.conflicting_options(options):
            raise OptionConflict(name, conflicting)
        return options
    if registered is not None and not new.is_redefinition_of(registered):
        raise DuplicateHandler(name, registered.location, new.location)
    for hook in declaration_hooks:
        hook(new)
    declarations_by_name[name] = new
    function.task = TaskProxy(name)  # type: ignore[attr-defined]  # handler.task is public
    return options


def _with_delivery(options: Offload) -> Offload:
    """Returns the options with `delivery` set: to the given value, else to `NITRO_DELIVERY`."""
    return options.model_copy(update={"delivery": options.delivery or Settings.load().delivery})


def _check_offloadable(function: Any, name: str) -> None:
    """Checks that a worker can find the function by importing its module.

    Raises:
        NotOffloadable: a worker would not find it; says why, and what to do instead.
    """
    advice = "offload a function at module level that does the call"
    if isinstance(function, MethodType):
        raise NotOffloadable(name, "it is a bound method, and its object does not exist in the worker", advice)
    if isinstance(function, partial):
        raise NotOffloadable(name, "it is a partial, and its arguments do not exist in the worker", advice)
    if not isinstance(function, FunctionType):
        raise NotOffloadable(name, f"it is an instance of {type(function).__name__}, not a function", advice)
    is_local = "<locals>" in function.__qualname__ or function.__name__ == "<lambda>"
    if is_local and name.endswith(function.__qualname__):
        kind = "a lambda" if function.__name__ == "<lambda>" else "a nested function"
        raise NotOffloadable(name, f"it is {kind}, which has no name that a worker could know", "give it name=")
    if name == f"__main__.{function.__qualname__}":
        raise NotOffloadable(name, "it is defined in an interactive session", "give it name=, or put it in a module")


def _undecorated_code(function: Callable[..., Any]) -> CodeType:
    """Returns the code of the function without its decorators."""
    code: CodeType = unwrap(function).__code__
    return code


@cache
def argument_checker(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function with the parameters of `function` and no effect, whose call raises the same TypeError."""
    parameters = signature(function).parameters.values()
    if not function.__name__.isidentifier() or any(p.kind is Parameter.POSITIONAL_ONLY for p in parameters):
        return signature(function).bind  # head_from_fun() supports neither lambdas nor positional-only parameters
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
        """Runs the handler in the caller's thread, as a call of a Celery task does."""
        return current_app().tasks[self.name](*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task of handler {self.name}>"
