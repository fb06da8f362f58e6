"""The pipeline of an emit: plan, inline handlers, dispatch. No other module knows the order of these steps.

`api.emit` calls the direct calls of a plan itself; such a plan has nothing to dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from nitro.errors import EmitError
from nitro.infrastructure import scope
from nitro.infrastructure.events.committing import (
    commit_to_wait_for,
    flush_async_sessions,
    publish_after_commit,
    warn_dropped,
)
from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.handler import Handler
from nitro.infrastructure.events.observers import observe
from nitro.infrastructure.events.plan import Plan
from nitro.infrastructure.events.ports import Call, dispatcher
from nitro.infrastructure.events.run import (
    PendingResult,
    check_condition,
    is_cancellation,
    is_failure,
    normalise_result,
    record_failure,
    run,
    run_async,
    run_async_together,
)

HandlerResult = tuple[Handler, Any]
PublishStep = Callable[[], None]


class Emittable(Protocol):
    """An event as the pipeline sees it."""

    name: str

    def plan_for(self, sender: object) -> Plan:
        """Returns the cached plan of an emission by `sender`."""


def record_or_start(
    handler: Handler, emission: Emission, result: Any, sender: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Records the result of a direct call, or starts it if it is awaitable; returns whether it cancels the emission."""
    result = normalise_result(result)
    if type(result) is PendingResult:
        _start_async_handler(handler, emission, Call(sender=sender, args=args, kwargs=kwargs), result)
        return False
    emission.append(result)
    if is_cancellation(result):
        emission.cancelled_by = handler.name
    return emission.cancelled_by is not None


def emit_with_results(event: Emittable, call: Call) -> tuple[Emission, list[HandlerResult]]:
    """Runs the sync handlers, starts the async handlers, and queues the offloaded handlers unless a handler cancels.

    Returns:
        The emission, and the sync handlers that ran with their results.
    """
    plan = plan_for_call(event, call)
    emission = _new_emission(event, plan)
    with observe(emission, call):
        with scope.push_cause(emission):
            results = _run_inline(plan, emission, call)
            publish = _dispatch_offloaded(plan, emission, call)
        if publish is not None:
            publish()
    return emission, results


def _run_inline(plan: Plan, emission: Emission, call: Call) -> list[HandlerResult]:
    """Runs the sync handlers until a handler cancels, and starts the async handlers."""
    results: list[HandlerResult] = []
    for handler in plan.inline:
        if handler.condition is not None and not check_condition(handler, emission, call):
            continue
        result = None if handler.is_async else run(handler, emission, call)
        if handler.is_async or type(result) is PendingResult:
            _start_async_handler(handler, emission, call, result)
            continue
        results.append((handler, result))
        if result is not None and is_cancellation(result):
            break
    _record_results(emission, results)
    return results


async def emit_async(event: Emittable, call: Call) -> tuple[Emission, list[HandlerResult]]:
    """Awaits the inline handlers, one priority after the other; queues unless a handler fails or cancels."""
    plan, results = plan_for_call(event, call), list[HandlerResult]()
    emission = _new_emission(event, plan)
    with observe(emission, call):
        for group in plan.groups:
            results += await _run_group(group, emission, call)
            if any(is_cancellation(result) for _, result in results):
                break
        _record_results(emission, results)
        if plan.offloaded and emission.cancelled_by is None:
            await flush_async_sessions(call)
        with scope.push_cause(emission):
            publish = _dispatch_offloaded(plan, emission, call)
        if publish is not None:
            import asyncio

            await asyncio.to_thread(publish)
    return emission, results


def _new_emission(event: Emittable, plan: Plan) -> Emission:
    emission = Emission.of(event.name)
    emission.plan, emission.started_at = plan, perf_counter()
    return emission


def plan_for_call(event: Emittable, call: Call) -> Plan:
    """Returns the plan of this call.

    Raises:
        EmitError: the sender was given by keyword, or the event is a glob.
    """
    if "sender" in call.kwargs:
        raise EmitError(f"emit of {event.name!r}: the sender is the second positional argument, not sender=")
    return event.plan_for(call.sender)


def _record_results(emission: Emission, results: Iterable[HandlerResult]) -> None:
    for handler, result in results:
        if result is not None:
            emission.append(result)
        if emission.cancelled_by is None and is_cancellation(result):
            emission.cancelled_by = handler.name


def _dispatch_offloaded(plan: Plan, emission: Emission, call: Call) -> PublishStep | None:
    """Serialises the offloads; returns the step that publishes them, or None if a commit runs it or none is queued."""
    if not plan.offloaded or emission.cancelled_by is not None:
        return None
    handlers = [handler for handler in plan.offloaded if check_condition(handler, emission, call)]
    if not handlers:
        return None
    commit = commit_to_wait_for(call, flush=True)
    publish = dispatcher().dispatch(emission, call, handlers, commit)
    if commit is None:
        return publish
    emission.waits_for_commit = True
    label = f"the publishing of event {emission.event!r}"
    commit.after_commit(partial(publish_after_commit, publish), abandoned=partial(warn_dropped, label))
    return None


async def _run_group(group: tuple[Handler, ...], emission: Emission, call: Call) -> list[HandlerResult]:
    """Runs the handlers of one priority, sync ones first, then async ones together; returns results in plan order."""
    results: dict[Handler, Any] = {}
    errors: dict[Handler, BaseException] = {}
    waiting: dict[Handler, PendingResult | None] = {}
    with scope.push_cause(emission):
        for handler in sorted(group, key=lambda handler: handler.is_async):
            if not check_condition(handler, emission, call):
                continue
            try:
                result = None if handler.is_async else run(handler, emission, call)
            except Exception as error:  # noqa: BLE001  # raised below, when the other handlers have ended
                errors[handler] = error
                continue
            (waiting if handler.is_async or isinstance(result, PendingResult) else results)[handler] = result
    for handler, outcome in (await run_async_together(waiting, emission, call)).items():
        if isinstance(outcome, BaseException):
            errors[handler] = outcome
        else:
            results[handler] = outcome[0]
    _raise_errors([errors[handler] for handler in group if handler in errors], emission)
    return [(handler, results[handler]) for handler in group if handler in results]


def _raise_errors(errors: list[BaseException], emission: Emission) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} handlers of event {emission.event!r} failed", errors)


def _start_async_handler(handler: Handler, emission: Emission, call: Call, pending: PendingResult | None) -> None:
    """Starts an async handler without waiting for it; in a transaction after the commit, with a copy of this context.

    Raises:
        TransactionError: this thread cannot wait for the commit.
    """
    from nitro.infrastructure.events import background

    emission.timings.setdefault(handler.name, (perf_counter(), None))
    label = f"handler {handler.name} of event {emission.event!r}"
    start = partial(background.start_job, partial(_run_unawaited, handler, emission, call, pending), label)
    commit = commit_to_wait_for(call)
    if commit is None:
        start()
    else:
        context = copy_context()
        context.run(scope.transaction_variable.set, None)
        commit.after_commit(partial(context.run, start), abandoned=partial(warn_dropped, label))


async def _run_unawaited(handler: Handler, emission: Emission, call: Call, pending: PendingResult | None) -> None:
    try:
        await run_async(handler, emission, call, pending, awaited=False)
    except BaseException as error:
        if not is_failure(error) and not isinstance(error, SystemExit):
            raise
        record_failure(handler, emission, call.sender, error)
