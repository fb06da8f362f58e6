"""Registration: checks a handler where it is declared, so that a bad one fails at import and not at an emit."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, ParamSpec, Protocol, TypedDict, TypeVar, get_args

from blinker import ANY

from nitro.errors import DeclarationError
from nitro.infrastructure.events.definition import Definition
from nitro.infrastructure.events.handler import (
    Function,
    Handler,
    OnError,
    SenderFilter,
    WeakFunction,
    default_name,
    function_key,
    kind_of,
)
from nitro.infrastructure.events.names import check_name
from nitro.infrastructure.events.ports import dispatcher

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class ConnectOptions(TypedDict, total=False):
    """How a handler is connected, beside its event, sender and weakness; `on` explains each."""

    priority: int
    condition: Function | None
    on_error: OnError
    offload: object
    name: str | None


class HandlerTask(Protocol):
    """The Celery task behind an offloaded function: any attribute of a task, resolved when first used."""

    name: str

    def delay(self, sender: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Queue the handler by itself, with the payload codec and without the outbox."""

    def s(self, sender: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A Celery signature of that call, for a canvas."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """`delay` with Celery's options of a message."""

    def __getattr__(self, name: str) -> Any: ...


class Offloaded(Protocol[P, R_co]):
    """An offloaded function: the function itself, and its task."""

    task: HandlerTask

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


def make_handler(
    function: Function,
    order: int,
    when_gone: Callable[[object], None],
    sender: object = ANY,
    weak: bool = False,
    *,
    priority: int = 0,
    condition: Function | None = None,
    on_error: OnError = "raise",
    offload: object = False,
    name: str | None = None,
) -> Handler:
    """The checked handler.

    Raises:
        DeclarationError: it could not work; says why.
    """
    if not callable(function):
        raise DeclarationError(f"{function!r} cannot be a handler: it is not callable")
    name = name or default_name(function)
    _check_options(name, priority, condition, on_error)
    checked = None
    if offload is False or offload is None:
        check_takes_sender(name, function)
    elif weak:
        raise DeclarationError(f"{name}: weak=True and offload exclude each other: a worker keeps its handlers")
    else:
        checked = dispatcher().declare(function, name, offload)
    kind = kind_of(function)
    return Handler(
        call=WeakFunction(function, when_gone) if weak else function,
        key=function_key(function),
        name=name,
        kind=kind,
        is_async=kind in ("async", "async generator"),
        sender=SenderFilter(sender, when_gone),
        priority=priority,
        condition=condition,
        on_error=on_error,
        offload=checked,
        order=order,
        definition=Definition.of(function),
    )


def _check_options(name: str, priority: object, condition: object, on_error: object) -> None:
    if not isinstance(name, str):
        raise DeclarationError(f"{name!r}: name= is a str such as 'shop.send_mail'")
    check_name("handler", name)
    if not isinstance(priority, int):
        raise DeclarationError(f"{name}: priority={priority!r} is not an int; the highest runs first")
    if on_error not in get_args(OnError):
        raise DeclarationError(f"{name}: on_error={on_error!r} is neither 'raise' nor 'log'")
    if condition is None:
        return
    if not callable(condition):
        raise DeclarationError(f"{name}: condition={condition!r} is not callable; give condition(sender, **kwargs)")
    check_takes_sender(f"{name}: its condition", condition)
    if kind_of(condition) != "sync":
        raise DeclarationError(
            f"{name}: its condition is an {kind_of(condition)} function; conditions are plain functions"
        )


_POSITIONAL_KINDS = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL)


def check_takes_sender(name: str, function: Function) -> None:
    """See that it has a parameter for the sender, which always comes first and by position.

    Raises:
        DeclarationError: every emit would end in a TypeError.
    """
    try:
        parameters = signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # of a function that is not written in Python, and does not say
        return
    if not any(parameter.kind in _POSITIONAL_KINDS for parameter in parameters):
        taken = ", ".join(map(str, parameters))
        raise DeclarationError(f"{name} takes ({taken}), and no sender; give it a parameter for the sender first")
