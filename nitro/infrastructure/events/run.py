"""Calls of handlers and conditions, and the reports of their errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from time import perf_counter
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from nitro.infrastructure import scope
from nitro.infrastructure.events.committing import begin_async_savepoint, begin_savepoint, enclosing_commit
from nitro.infrastructure.events.display import describe_sender
from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.handler import Handler
from nitro.infrastructure.events.ports import Call
from nitro.infrastructure.logs import describe_error, escape_text, get_logger, log_extra

logger = get_logger("nitro.events")


class YieldedValues(list[Any]):
    """The result of a generator: the values that it yielded."""

    __slots__ = ()


class PendingResult:
    """The result of an async handler that was called but not awaited yet."""

    __slots__ = ("awaitable",)

    def __init__(self, awaitable: Coroutine[Any, Any, Any] | AsyncIterator[Any]) -> None:
        self.awaitable = awaitable


class AsyncCause:
    """An emission as the cause of the emissions of one async handler, while other handlers of it run.

    Attributes:
        handler: name of the async handler.
    """

    __slots__ = ("_emission", "handler")

    def __init__(self, emission: Emission, handler: str) -> None:
        self._emission, self.handler = emission, handler

    @property
    def id(self) -> str:
        """Id of the emission."""
        return self._emission.id

    @property
    def root(self) -> str | None:
        """Root of the emission."""
        return self._emission.root


def check_condition(handler: Handler, emission: Emission, call: Call) -> bool:
    """Whether the condition lets the handler run; otherwise the emission records the reason."""
    if handler.condition is None:
        return True
    try:
        verdict = handler.condition(call.sender, *call.args, **call.kwargs)
    except Exception as error:  # noqa: BLE001  # logged and recorded
        return record_condition_error(handler, emission, call.sender, error)
    return check_verdict(verdict, handler, emission, call.sender)


def check_verdict(verdict: Any, handler: Handler, emission: Emission, sender: object) -> bool:
    """Whether the result of a condition is true; otherwise the emission records the reason."""
    try:
        if isinstance(verdict, CoroutineType):
            verdict.close()
            raise TypeError("the condition is async, and conditions are plain functions")
        if verdict:
            return True
    except Exception as error:  # noqa: BLE001  # logged and recorded
        return record_condition_error(handler, emission, sender, error)
    emission.skipped.setdefault(handler.name, "condition is false")
    return False


def record_condition_error(handler: Handler, emission: Emission, sender: object, error: Exception) -> bool:
    """Logs the error of a condition, records it in the emission, and returns False."""
    _log_error(
        "condition of handler %s of event %s by %s raised; it is skipped (emission %s)",
        handler,
        emission,
        sender,
        error,
    )
    emission.skipped[handler.name] = f"condition raised {describe_error(error)}"
    return False


def run(handler: Handler, emission: Emission, call: Call) -> Any:
    """Calls a handler and returns its result; a generator gives `YieldedValues`, an awaitable `PendingResult`."""
    emission.handler, result = handler.name, None
    began = perf_counter()
    savepoint = None if handler.on_error == "raise" else begin_savepoint(handler, call)
    try:
        if savepoint is None:
            result = normalise_result(handler.call(call.sender, *call.args, **call.kwargs))
        else:
            with savepoint:
                result = normalise_result(handler.call(call.sender, *call.args, **call.kwargs))
    except Exception as error:
        if not _handle_error(handler, emission, call.sender, error):
            raise
    finally:
        emission.timings[handler.name] = (began, perf_counter())
    emission.handler = None
    return result


def normalise_result(result: Any) -> Any:
    """Returns the result of a handler for the return value of its call."""
    if result is None:
        return None
    kind = type(result)
    if kind is GeneratorType:
        return _drain_generator(result)
    return PendingResult(result) if kind is AsyncGeneratorType or hasattr(kind, "__await__") else result


async def run_async(
    handler: Handler, emission: Emission, call: Call, pending: PendingResult | None = None, *, awaited: bool = True
) -> Any:
    """Awaits an async handler and returns its result; the emissions of the handler have this emission as their cause.

    Args:
        pending: the awaitable, if the handler was already called.
        awaited: whether the emission waits for the handler; only then it records the end, and an async generator
            may cancel it.
    """
    scope.set_task_cause(AsyncCause(emission, handler.name))
    began, cut_short = perf_counter(), False
    savepoint = await begin_async_savepoint(handler, call) if awaited and handler.on_error == "log" else None
    try:
        if savepoint is None:
            return await _await_handler(handler, call, pending, awaited)
        async with savepoint:
            return await _await_handler(handler, call, pending, awaited)
    except BaseException as error:
        cut_short = not is_failure(error)
        if cut_short or not _handle_error(handler, emission, call.sender, error):
            raise
        return None
    finally:
        emission.timings[handler.name] = (began, perf_counter() if awaited and not cut_short else None)


async def _await_handler(handler: Handler, call: Call, pending: PendingResult | None, until_false: bool) -> Any:
    awaitable: Any = pending.awaitable if pending else handler.call(call.sender, *call.args, **call.kwargs)
    if awaitable is None:  # a weakly referenced function that no longer exists
        return None
    is_generator = isinstance(awaitable, AsyncGeneratorType)
    return await (_drain_async_generator(awaitable, until_false) if is_generator else awaitable)


async def run_async_together(
    waiting: dict[Handler, PendingResult | None], emission: Emission, call: Call
) -> dict[Handler, Any]:
    """Awaits async handlers together; in a transaction, handlers with a savepoint run last, one after the other."""
    import asyncio

    with_savepoint = [handler for handler in waiting if handler.on_error == "log"]
    if with_savepoint and enclosing_commit(call) is None:
        with_savepoint = []
    together = [handler for handler in waiting if handler not in with_savepoint]
    outcomes: dict[Handler, Any] = {}
    for group in (together, *([handler] for handler in with_savepoint)):
        runs = (_run_into_tuple(handler, emission, call, waiting[handler]) for handler in group)
        outcomes.update(zip(group, await asyncio.gather(*runs, return_exceptions=True), strict=True))
    return outcomes


async def _run_into_tuple(
    handler: Handler, emission: Emission, call: Call, pending: PendingResult | None
) -> tuple[Any]:
    """Returns the result in a tuple, which tells an exception that a handler returns from one that it raises."""
    return (await run_async(handler, emission, call, pending),)


def is_cancellation(result: Any) -> bool:
    """Whether a result cancels the emission: False, or a generator whose last value is False."""
    return result is False or (type(result) is YieldedValues and bool(result) and result[-1] is False)


def record_failure(handler: Handler, emission: Emission, sender: object, error: BaseException) -> None:
    """Logs an error that does not stop the emission, and records it in the emission."""
    _log_error("handler %s of event %s by %s failed (emission %s)", handler, emission, sender, error)
    emission.failed[handler.name] = error


def _log_error(line: str, handler: Handler, emission: Emission, sender: object, error: BaseException) -> None:
    facts = {
        "handler": handler.name,
        "event": emission.event,
        "sender": describe_sender(sender),
        "emission": emission.id,
    }
    logger.error(line, *map(escape_text, facts.values()), exc_info=error, extra=log_extra(**facts))


def is_failure(error: BaseException) -> bool:
    """Whether an async handler failed; a CancelledError counts unless the task of the handler itself is cancelled."""
    import asyncio

    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, Exception)
    task = asyncio.current_task()
    return task is None or not task.cancelling()


def _handle_error(handler: Handler, emission: Emission, sender: object, error: BaseException) -> bool:
    """Whether the error of a handler is only logged; an error that is to be raised gets the note of the handler."""
    if handler.on_error == "log":
        record_failure(handler, emission, sender, error)
        return True
    annotate_error(handler, emission, error)
    return False


def annotate_error(handler: Handler, emission: Emission, error: BaseException) -> None:
    """Adds a note with the names of handler and event to the error, unless it has one."""
    if not is_annotated(handler, emission, error):
        error.add_note(_error_note(handler, emission))


def is_annotated(handler: Handler, emission: Emission, error: BaseException) -> bool:
    """Whether the error has the note of this handler."""
    return _error_note(handler, emission) in getattr(error, "__notes__", ())


def _error_note(handler: Handler, emission: Emission) -> str:
    return f"raised by handler {handler.name} of event {emission.event!r}"


def _drain_generator(generator: Iterator[Any]) -> YieldedValues:
    yielded = YieldedValues()
    for value in generator:
        yielded.append(value)
        if value is False:
            generator.close()  # type: ignore[attr-defined]  # only generators come here
            break
    return yielded


async def _drain_async_generator(generator: AsyncGeneratorType[Any, Any], until_false: bool) -> YieldedValues:
    yielded = YieldedValues()
    async for value in generator:
        yielded.append(value)
        if value is False and until_false:
            await generator.aclose()
            break
    return yielded
