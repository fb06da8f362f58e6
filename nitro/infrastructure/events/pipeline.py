"""The order of the steps of an emit: plan, inline handlers, dispatch. It lives here and only here.

`api.emit` calls plain handlers itself, in the order of the plan, and has nothing to dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from nitro.errors import EmitError
from nitro.infrastructure import scope
from nitro.infrastructure.events.committing import commit_of, flush_of, publish_committed, warn_of_drop
from nitro.infrastructure.events.dispatcher import Call, dispatcher
from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.handler import Handler
from nitro.infrastructure.events.plan import Plan
from nitro.infrastructure.events.run import (
    Pending,
    attempts,
    cancels,
    holds,
    is_failure,
    report,
    run,
    run_async,
    settled,
)
from nitro.infrastructure.events.watching import watched

Outcome = tuple[Handler, Any]
Send = Callable[[], None]


class Source(Protocol):
    """An event as the pipeline sees it."""

    name: str

    def plan_for(self, sender: object) -> Plan:
        """The cached plan of an emission by `sender`."""


def ends(
    handler: Handler, emission: Emission, result: Any, sender: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Note the result of a plain handler, or start what it is; whether it cancels."""
    result = settled(result)
    if type(result) is Pending:
        _start(handler, emission, Call(sender=sender, args=args, kwargs=kwargs), result)
        return False
    emission.append(result)
    if cancels(result):
        emission.cancelled_by = handler.name
    return emission.cancelled_by is not None


def emit_fully(event: Source, call: Call) -> tuple[Emission, list[Outcome]]:
    """Run the sync handlers, start the async ones, queue the offloaded ones unless one cancelled.

    Returns:
        The emission, and the inline handlers that were waited for with their results.
    """
    plan = plan_of(event, call)
    emission = _begun(event, plan)
    with watched(emission, call):
        with scope.emitting(emission):
            outcomes = _run_inline(plan, emission, call)
            send = _dispatch(plan, emission, call)
        if send is not None:
            send()
    return emission, outcomes


def _run_inline(plan: Plan, emission: Emission, call: Call) -> list[Outcome]:
    """Run the sync handlers until one cancels, and start the async ones."""
    outcomes: list[Outcome] = []
    for handler in plan.inline:
        if handler.condition is not None and not holds(handler, emission, call):
            continue
        result = None if handler.is_async else run(handler, emission, call)
        if handler.is_async or type(result) is Pending:
            _start(handler, emission, call, result)
            continue
        outcomes.append((handler, result))
        if result is not None and cancels(result):
            break
    _conclude(emission, outcomes)
    return outcomes


async def emit_async(event: Source, call: Call) -> tuple[Emission, list[Outcome]]:
    """Await all inline handlers, one priority after the other, then queue unless one failed or cancelled."""
    plan, outcomes = plan_of(event, call), list[Outcome]()
    emission = _begun(event, plan)
    with watched(emission, call):
        for group in plan.groups:
            outcomes += await _run_group(group, emission, call)
            if any(cancels(result) for _, result in outcomes):
                break
        _conclude(emission, outcomes)
        if plan.offloaded and emission.cancelled_by is None:
            await flush_of(call)
        with scope.emitting(emission):
            send = _dispatch(plan, emission, call)
        if send is not None:
            import asyncio

            await asyncio.to_thread(send)
    return emission, outcomes


def _begun(event: Source, plan: Plan) -> Emission:
    emission = Emission.of(event.name)
    emission.plan, emission.began = plan, perf_counter()
    return emission


def plan_of(event: Source, call: Call) -> Plan:
    """The plan of this call.

    Raises:
        EmitError: `sender=` was given by keyword, or the event is a glob.
    """
    if "sender" in call.kwargs:
        raise EmitError(f"emit of {event.name!r}: the sender is the second positional argument, not sender=")
    return event.plan_for(call.sender)


def _conclude(emission: Emission, outcomes: Iterable[Outcome]) -> None:
    for handler, result in outcomes:
        if result is not None:
            emission.append(result)
        if emission.cancelled_by is None and cancels(result):
            emission.cancelled_by = handler.name


def _dispatch(plan: Plan, emission: Emission, call: Call) -> Send | None:
    """The step that publishes what is to be queued, unless a commit takes it; what can be wrong with it is raised."""
    if not plan.offloaded or emission.cancelled_by is not None:
        return None
    handlers = [handler for handler in plan.offloaded if holds(handler, emission, call)]
    if not handlers:
        return None
    commit = commit_of(call, flush=True)
    send = dispatcher().dispatch(emission, call, handlers, commit)
    if commit is None:
        return send
    emission.waits = True
    dropped = f"what event {emission.event!r} had offloaded"
    commit.after_commit(partial(publish_committed, send), abandoned=partial(warn_of_drop, dropped))
    return None


async def _run_group(group: tuple[Handler, ...], emission: Emission, call: Call) -> list[Outcome]:
    """The outcomes of handlers of equal priority, in plan order: the sync ones run first, the async ones together."""
    results: dict[Handler, Any] = {}
    errors: dict[Handler, BaseException] = {}
    waiting: dict[Handler, Pending | None] = {}
    with scope.emitting(emission):
        for handler in sorted(group, key=lambda handler: handler.is_async):
            if not holds(handler, emission, call):
                continue
            try:
                result = None if handler.is_async else run(handler, emission, call)
            except Exception as error:  # noqa: BLE001  # it is raised when its siblings have finished
                errors[handler] = error
                continue
            (waiting if handler.is_async or isinstance(result, Pending) else results)[handler] = result
    for handler, outcome in (await attempts(waiting, emission, call)).items():
        if isinstance(outcome, BaseException):
            errors[handler] = outcome
        else:
            results[handler] = outcome[0]
    _raise([errors[handler] for handler in group if handler in errors], emission)
    return [(handler, results[handler]) for handler in group if handler in results]


def _raise(errors: list[BaseException], emission: Emission) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} handlers of event {emission.event!r} failed", errors)


def _start(handler: Handler, emission: Emission, call: Call, pending: Pending | None) -> None:
    """Run an async handler beside the emitter, inside a transaction after its commit and with its context as it is now.

    Raises:
        TransactionError: it would have to wait for a commit that this thread cannot wait for.
    """
    from nitro.infrastructure.events import background

    emission.turns.setdefault(handler.name, (perf_counter(), None))
    label = f"handler {handler.name} of event {emission.event!r}"
    begin = partial(background.start, partial(_unattended, handler, emission, call, pending), label)
    commit = commit_of(call)
    if commit is None:
        begin()
    else:
        context = copy_context()
        context.run(scope.transaction.set, None)
        commit.after_commit(partial(context.run, begin), abandoned=partial(warn_of_drop, label))


async def _unattended(handler: Handler, emission: Emission, call: Call, pending: Pending | None) -> None:
    try:
        await run_async(handler, emission, call, pending, awaited=False)
    except BaseException as error:
        if not is_failure(error) and not isinstance(error, SystemExit):
            raise
        report(handler, emission, call.sender, error)
