"""The functions of the public interface; a name means the event of that name in the default namespace."""

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
    """Returns the event of that name, the same object at each call.

    Raises:
        DeclarationError: the name is not a str, or empty.
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
    """Makes a function a handler of an event; the decorator returns the function itself.

    Args:
        evt: an event, its name, or a glob such as `"user.*"`, which also hears events created later.
        sender: the only object that is heard, or a class whose instances are heard; an entity is known by class and id.
        weak: whether the handler is forgotten when nothing else references it.
        priority: the highest runs first; handlers of equal priority run in the order they were connected.
        condition: function that is called with the handler's arguments just before the handler; if it returns a false
            value or raises, the handler is skipped.
        on_error: `"log"` keeps a failure of an inline handler from stopping the others.
        offload: True, `Offload(...)` or a dict of options, to run the handler in a worker.
        name: name of the handler in reports, and of its Celery task, instead of `module.qualname`.

    Raises:
        DeclarationError: the handler, or one of its options, cannot work.
    """
    target = resolve(evt)

    def decorate(function: F) -> F:
        return target.connect(
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
    """Emits an event: runs its inline handlers, then queues its offloaded handlers.

    Sync handlers run in the calling thread, highest priority first. A handler that returns False cancels the
    emission: no later handler runs, and nothing is queued. Async handlers are started and not awaited.

    Returns:
        The results that are not None, with the id and the outcome of the emission.

    Raises:
        EmitError: a glob was emitted, or `sender=` was given by keyword.
        PayloadError: a value cannot be sent to a worker; nothing was published.
        Exception: the error of an inline handler; nothing was published.
    """
    # The fast path for events whose handlers are all direct calls. All others take the pipeline.
    event: Any = evt
    try:
        direct_calls = None if enabled_levels[DEBUG] else event.plan_cache.direct_calls
    except (AttributeError, KeyError):  # a name, or no cached plan, or no cached log level
        direct_calls = None
    if direct_calls is None or active_observers or (kwargs and "sender" in kwargs):
        return pipeline.emit_with_results(resolve(evt), Call(sender=sender, args=args, kwargs=kwargs))[0]
    emissions = thread_state.emissions
    # Emission() costs a fifth of Emission.of(), which also finds the cause.
    emission = Emission.of(event.name) if emissions or task_cause() is not None else Emission()
    emission.event = event.name
    emissions.append(emission)
    sender_only = not (args or kwargs)  # a call without * and ** takes half the time
    try:
        for condition, function, handler in direct_calls:
            if condition is not None:
                try:
                    verdict = condition(sender) if sender_only else condition(sender, *args, **kwargs)
                except Exception as error:  # noqa: BLE001  # logged and recorded
                    verdict = record_condition_error(handler, emission, sender, error)
                if verdict is not True and not check_verdict(verdict, handler, emission, sender):
                    continue
            result = function(sender) if sender_only else function(sender, *args, **kwargs)
            if result is not None and record_or_start(handler, emission, result, sender, args, kwargs):
                break
    except Exception as error:
        annotate_error(handler, emission, error)
        raise
    finally:
        del emissions[-1]
    return emission


async def emit_async(evt: Event | str, sender: Any = ANY, /, *args: Any, **kwargs: Any) -> Emission:
    """Emits an event as `emit` does, and awaits every inline handler; handlers of equal priority run together.

    Raises:
        ExceptionGroup: several handlers of equal priority failed; a single error is raised as it is.
    """
    return (await pipeline.emit_async(resolve(evt), Call(sender=sender, args=args, kwargs=kwargs)))[0]


Event.emit = emit
Event.emit_async = emit_async


def filter_signals(pattern: str, namespace: Namespace | None = None) -> dict[str, Event]:
    """Returns the events whose name matches a glob such as `"user.*"`, by name, in the order they were created."""
    return (default_namespace if namespace is None else namespace).filter(pattern)


def drain(timeout: float | None = None) -> bool:
    """Waits for the async handlers that `emit` started without a loop; returns whether all ended in `timeout` seconds.

    Raises:
        WrongThread: the calling thread runs an event loop; use `await drain_async()` there.
    """
    from nitro.infrastructure.events import background

    return background.drain(timeout)


async def drain_async() -> None:
    """Waits for the async handlers that `emit` started on this loop, or without a loop."""
    from nitro.infrastructure.events import background

    await background.drain_async()


def resolve(evt: Event | str) -> Event:
    """Returns an event as it is, and for a name the event of that name.

    Raises:
        DeclarationError: the value is neither an event nor a name.
    """
    if isinstance(evt, Event):
        return evt
    if isinstance(evt, str):
        return default_namespace.event(evt)
    raise DeclarationError(f"{evt!r} is neither an Event nor the name of one; write @on(event) with parentheses")
