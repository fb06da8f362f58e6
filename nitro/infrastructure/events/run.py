"""Running handlers: the one place that calls them, asks their conditions and reports what went wrong."""

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
    """The result of a generator: what it yielded."""

    __slots__ = ()


class PendingResult:
    """The result of an async handler that was called but not awaited yet."""

    __slots__ = ("awaitable",)

    def __init__(self, awaitable: Coroutine[Any, Any, Any] | AsyncIterator[Any]) -> None:
        self.awaitable = awaitable


class AsyncCause:
    """An emission as the cause of what one async handler of it emits, while others of it run.

    Attributes:
        handler: name of that handler.
    """

    __slots__ = ("_emission", "handler")

    def __init__(self, emission: Emission, handler: str) -> None:
        self._emission, self.handler = emission, handler

    @property
    def id(self) -> str:
        """That of the emission."""
        return self._emission.id

    @property
    def root(self) -> str | None:
        """That of the emission."""
        return self._emission.root


def check_condition(handler: Handler, emission: Emission, call: Call) -> bool:
    """Whether the handler's condition lets it run; if not, the emission says why."""
    if handler.condition is None:
        return True
    try:
        verdict = handler.condition(call.sender, *call.args, **call.kwargs)
    except Exception as error:  # noqa: BLE001  # it is logged
        return record_condition_error(handler, emission, call.sender, error)
    return check_verdict(verdict, handler, emission, call.sender)


def check_verdict(verdict: Any, handler: Handler, emission: Emission, sender: object) -> bool:
    """Whether what a condition gave means yes; if not, the emission says why."""
    try:
        if isinstance(verdict, CoroutineType):
            verdict.close()
            raise TypeError("the condition is async, and conditions are plain functions")
        if verdict:
            return True
    except Exception as error:  # noqa: BLE001  # it is logged
        return record_condition_error(handler, emission, sender, error)
    emission.skipped.setdefault(handler.name, "condition is false")
    return False


def record_condition_error(handler: Handler, emission: Emission, sender: object, error: Exception) -> bool:
    """No: the condition raised; said aloud and in the emission."""
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
    """The result of a handler: of a generator `YieldedValues`, of one that turns out to be async `PendingResult`."""
    emission.handler, result = handler.name, None
    began = perf_counter()
    apart = None if handler.on_error == "raise" else begin_savepoint(handler, call)
    try:
        if apart is None:
            result = normalise_result(handler.call(call.sender, *call.args, **call.kwargs))
        else:
            with apart:
                result = normalise_result(handler.call(call.sender, *call.args, **call.kwargs))
    except Exception as error:
        if not _handle_error(handler, emission, call.sender, error):
            raise
    finally:
        emission.timings[handler.name] = (began, perf_counter())
    emission.handler = None
    return result


def normalise_result(result: Any) -> Any:
    """What a call gave as the result of its handler."""
    if result is None:
        return None
    kind = type(result)
    if kind is GeneratorType:
        return _drain_generator(result)
    return PendingResult(result) if kind is AsyncGeneratorType or hasattr(kind, "__await__") else result


async def run_async(
    handler: Handler, emission: Emission, call: Call, pending: PendingResult | None = None, *, awaited: bool = True
) -> Any:
    """The awaited result of an async handler, in a task of its own; what it emits has the emission as its cause.

    Args:
        pending: what the call gave, where it was made already.
        awaited: by the emission, which then knows when it ended, and which an async generator may cancel.
    """
    scope.set_task_cause(AsyncCause(emission, handler.name))
    began, cut_short = perf_counter(), False
    apart = await begin_async_savepoint(handler, call) if awaited and handler.on_error == "log" else None
    try:
        if apart is None:
            return await _await_handler(handler, call, pending, awaited)
        async with apart:
            return await _await_handler(handler, call, pending, awaited)
    except BaseException as error:
        cut_short = not is_failure(error)
        if cut_short or not _handle_error(handler, emission, call.sender, error):
            raise
        return None
    finally:
        emission.timings[handler.name] = (began, perf_counter() if awaited and not cut_short else None)


async def _await_handler(handler: Handler, call: Call, pending: PendingResult | None, until_false: bool) -> Any:
    made: Any = pending.awaitable if pending else handler.call(call.sender, *call.args, **call.kwargs)
    if made is None:  # a weak handler that has died since
        return None
    return await (_drain_async_generator(made, until_false) if isinstance(made, AsyncGeneratorType) else made)


async def run_async_together(
    waiting: dict[Handler, PendingResult | None], emission: Emission, call: Call
) -> dict[Handler, Any]:
    """Await async handlers together; in a transaction those with a savepoint of their own last, one after the other."""
    import asyncio

    apart = [handler for handler in waiting if handler.on_error == "log"]
    if apart and enclosing_commit(call) is None:
        apart = []
    outcomes: dict[Handler, Any] = {}
    for group in ([handler for handler in waiting if handler not in apart], *([handler] for handler in apart)):
        awaited = (_run_into_tuple(handler, emission, call, waiting[handler]) for handler in group)
        outcomes.update(zip(group, await asyncio.gather(*awaited, return_exceptions=True), strict=True))
    return outcomes


async def _run_into_tuple(
    handler: Handler, emission: Emission, call: Call, pending: PendingResult | None
) -> tuple[Any]:
    """A result in a tuple, so that an exception that a handler returns is not taken for one that it raised."""
    return (await run_async(handler, emission, call, pending),)


def is_cancellation(result: Any) -> bool:
    """Whether a result stops the emission: False itself, or a generator that was closed at it."""
    return result is False or (type(result) is YieldedValues and bool(result) and result[-1] is False)


def record_failure(handler: Handler, emission: Emission, sender: object, error: BaseException) -> None:
    """Log a failure that stops nothing and list it in the emission."""
    _log_error("handler %s of event %s by %s failed (emission %s)", handler, emission, sender, error)
    emission.failed[handler.name] = error


def _log_error(line: str, handler: Handler, emission: Emission, sender: object, error: BaseException) -> None:
    known = {
        "handler": handler.name,
        "event": emission.event,
        "sender": describe_sender(sender),
        "emission": emission.id,
    }
    logger.error(line, *map(escape_text, known.values()), exc_info=error, extra=log_extra(**known))


def is_failure(error: BaseException) -> bool:
    """Whether an async handler failed, be it that what it awaited was cancelled, rather than was cancelled itself."""
    import asyncio

    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, Exception)
    task = asyncio.current_task()
    return task is None or not task.cancelling()


def _handle_error(handler: Handler, emission: Emission, sender: object, error: BaseException) -> bool:
    """Whether the failure is only reported; one that is not gets the handler's name in a note."""
    if handler.on_error == "log":
        record_failure(handler, emission, sender, error)
        return True
    annotate_error(handler, emission, error)
    return False


def annotate_error(handler: Handler, emission: Emission, error: BaseException) -> None:
    """Say in a note whose error it is."""
    if not is_annotated(handler, emission, error):
        error.add_note(_error_note(handler, emission))


def is_annotated(handler: Handler, emission: Emission, error: BaseException) -> bool:
    """Whether a note says that it is the error of this handler."""
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
