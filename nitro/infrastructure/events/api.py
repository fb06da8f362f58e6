"""The functions of the public interface; a name stands for the event of that name in the default namespace."""

from __future__ import annotations

from collections.abc import Callable
from logging import DEBUG
from typing import Any, Literal, ParamSpec, TypeVar, overload

from blinker import ANY

from nitro.errors import DeclarationError
from nitro.infrastructure.events import pipeline
from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.events import Event, Namespace, default_namespace
from nitro.infrastructure.events.handler import Function, OffloadLike, OnError
from nitro.infrastructure.events.observers import active_observers, enabled_levels
from nitro.infrastructure.events.pipeline import record_or_start
from nitro.infrastructure.events.ports import Call
from nitro.infrastructure.events.registration import Offloaded
from nitro.infrastructure.events.run import annotate_error, check_verdict, record_condition_error
from nitro.infrastructure.scope import task_cause, thread_state

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")


def event(name: str, doc: str | None = None) -> Event:
    """The event of that name, the same object at each call.

    Raises:
        DeclarationError: the name is not a text, or empty.
    """
    return default_namespace.event(name, doc)


@overload
def on(
    evt: Event | str,
    *,
    sender: Any = ...,
    weak: bool = ...,
    priority: int = ...,
    condition: Function | None = ...,
    on_error: OnError = ...,
    offload: Literal[False] = ...,
    name: str | None = ...,
) -> Callable[[F], F]: ...


@overload
def on(
    evt: Event | str,
    *,
    sender: Any = ...,
    weak: bool = ...,
    priority: int = ...,
    condition: Function | None = ...,
    on_error: OnError = ...,
    offload: Literal[True] | OffloadLike | dict[str, Any],
    name: str | None = ...,
) -> Callable[[Callable[P, R]], Offloaded[P, R]]: ...


def on(
    evt: Event | str,
    *,
    sender: Any = ANY,
    weak: bool = False,
    priority: int = 0,
    condition: Function | None = None,
    on_error: OnError = "raise",
    offload: object = False,
    name: str | None = None,
) -> Any:
    """Make a function a handler of an event; the decorator returns that very function.

    Args:
        evt: an event, its name, or a glob such as `"user.*"`, which also hears events created later.
        sender: hear only this object, or the instances of this class; an entity is known by class and id.
        weak: forget the handler when nobody else holds it.
        priority: the highest runs first; equal ones run in the order they were connected.
        condition: called as the handler is, just before it; when it gives False or raises, the handler is skipped.
        on_error: `"log"` keeps a failure of an inline handler from stopping the others.
        offload: run it in a worker: True, `Offload(...)` or a dict of options.
        name: its name in reports, and of its Celery task, instead of `module.qualname`.

    Raises:
        DeclarationError: the handler, or an option of it, could not work.
    """
    connected = resolve(evt)

    def decorate(function: F) -> F:
        return connected.connect(
            function,
            sender,
            weak,
            priority=priority,
            condition=condition,
            on_error=on_error,
            offload=offload,
            name=name,
        )

    return decorate


def emit(evt: Event | str, sender: Any = ANY, /, *args: Any, **kwargs: Any) -> Emission:
    """Say that something happened: run the inline handlers, then queue the offloaded ones.

    Sync handlers run here, highest priority first, and one that returns False stops the rest and
    everything offloaded. Async ones are started and not awaited. Works in any thread.

    Returns:
        The results that are not None, and what else became of it.

    Raises:
        EmitError: a glob was emitted, or `sender=` was given by keyword.
        PayloadError: something cannot travel to a worker; nothing was published.
        Exception: whatever an inline handler raised; nothing was published.
    """
    # Where all handlers are plain just their calls, with as little around them as possible; else the whole pipeline.
    event: Any = evt
    try:
        direct_calls = None if enabled_levels[DEBUG] else event.plan_cache.direct_calls
    except (AttributeError, KeyError):  # of a name, of an event whose handlers have changed; or levels have
        direct_calls = None
    if direct_calls is None or active_observers or (kwargs and "sender" in kwargs):
        return pipeline.emit_with_results(resolve(evt), Call(sender=sender, args=args, kwargs=kwargs))[0]
    emissions = thread_state.emissions
    # What no other emission has caused comes for a fifth of the price: a constructor in Python costs the rest.
    emission = Emission.of(event.name) if emissions or task_cause() is not None else Emission()
    emission.event = event.name
    emissions.append(emission)
    alone = not (args or kwargs)  # half the price of a call
    try:
        for condition, function, handler in direct_calls:
            if condition is not None:
                try:
                    verdict = condition(sender) if alone else condition(sender, *args, **kwargs)
                except Exception as error:  # noqa: BLE001  # it is logged
                    verdict = record_condition_error(handler, emission, sender, error)
                if verdict is not True and not check_verdict(verdict, handler, emission, sender):
                    continue
            result = function(sender) if alone else function(sender, *args, **kwargs)
            if result is not None and record_or_start(handler, emission, result, sender, args, kwargs):
                break
    except Exception as error:
        annotate_error(handler, emission, error)
        raise
    finally:
        del emissions[-1]
    return emission


async def emit_async(evt: Event | str, sender: Any = ANY, /, *args: Any, **kwargs: Any) -> Emission:
    """As `emit`, but every inline handler is awaited, those of equal priority together.

    Raises:
        ExceptionGroup: several handlers of equal priority failed; a single failure is raised as it is.
    """
    return (await pipeline.emit_async(resolve(evt), Call(sender=sender, args=args, kwargs=kwargs)))[0]


Event.emit = emit
Event.emit_async = emit_async


def filter_signals(pattern: str, namespace: Namespace | None = None) -> dict[str, Event]:
    """The events whose name matches a glob such as `"user.*"`, by name, in the order they were created."""
    return (default_namespace if namespace is None else namespace).filter(pattern)


def drain(timeout: float | None = None) -> bool:
    """Wait for the async handlers that `emit` started without a loop; whether all finished within `timeout` seconds.

    Raises:
        WrongThread: called on the thread of a running loop; use `await drain_async()` there.
    """
    from nitro.infrastructure.events import background

    return background.drain(timeout)


async def drain_async() -> None:
    """Wait for the async handlers that `emit` started on this loop, or without a loop."""
    from nitro.infrastructure.events import background

    await background.drain_async()


def resolve(evt: Event | str) -> Event:
    """The event itself, or the one of that name.

    Raises:
        DeclarationError: it is neither.
    """
    if isinstance(evt, Event):
        return evt
    if isinstance(evt, str):
        return default_namespace.event(evt)
    raise DeclarationError(f"{evt!r} is neither an Event nor the name of one; write @on(event) with parentheses")
