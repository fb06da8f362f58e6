"""Registration of handlers: checks them at their declaration, so that a bad handler fails at import."""

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
    """Options of a connection, besides event, sender and `weak`; `on` documents each."""

    priority: int
    condition: Function | None
    on_error: OnError
    offload: object
    name: str | None


class HandlerTask(Protocol):
    """The Celery task of an offloaded function, with all attributes of a task, resolved at the first use."""

    name: str

    def delay(self, sender: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Queues a call of the handler alone, with the payload codec and without the outbox."""

    def s(self, sender: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Returns a Celery signature of the call, for a canvas."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Queues a call as `delay` does, with Celery's options of a message."""

    def __getattr__(self, name: str) -> Any: ...


class Offloaded(Protocol[P, R_co]):
    """An offloaded function, which has its Celery task as an attribute."""

    task: HandlerTask

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


def make_handler(
    function: Function,
    order: int,
    on_dead: Callable[[object], None],
    sender: object = ANY,
    weak: bool = False,
    *,
    priority: int = 0,
    condition: Function | None = None,
    on_error: OnError = "raise",
    offload: object = False,
    name: str | None = None,
) -> Handler:
    """Returns a handler whose options are checked.

    Raises:
        DeclarationError: the handler cannot work; the message says the reason.
    """
    if not callable(function):
        raise DeclarationError(f"{function!r} cannot be a handler: it is not callable")
    name = name or default_name(function)
    _check_options(name, priority, condition, on_error)
    options = None
    if offload is False or offload is None:
        check_takes_sender(name, function)
    elif weak:
        raise DeclarationError(f"{name}: weak=True and offload exclude each other: a worker keeps its handlers")
    else:
        options = dispatcher().declare(function, name, offload)
    kind = kind_of(function)
    return Handler(
        call=WeakFunction(function, on_dead) if weak else function,
        key=function_key(function),
        name=name,
        kind=kind,
        is_async=kind in ("async", "async generator"),
        sender=SenderFilter(sender, on_dead),
        priority=priority,
        condition=condition,
        on_error=on_error,
        offload=options,
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
    """Checks that the function has a parameter for the sender, which is the first positional argument.

    Raises:
        DeclarationError: the function has no positional parameter, so every emit would raise a TypeError.
    """
    try:
        parameters = signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # a function that is not written in Python and has no signature
        return
    if not any(parameter.kind in _POSITIONAL_KINDS for parameter in parameters):
        listed = ", ".join(map(str, parameters))
        raise DeclarationError(f"{name} takes ({listed}), and no sender; give it a parameter for the sender first")
