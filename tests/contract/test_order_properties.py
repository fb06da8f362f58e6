"""Random handlers run in the order of a plain model: contract section 4."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nitro.infrastructure.events import Emission, Event, Namespace, drain, on

KINDS = ("sync", "generator", "async", "async generator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A handler to make: `returns` is its result or the last value that it yields; an exception is raised."""

    name: str
    kind: str
    priority: int
    holds: bool | None
    returns: Any
    on_error: str
    offload: bool

    @property
    def is_async(self) -> bool:
        return self.kind.startswith("async")

    @property
    def runs(self) -> bool:
        return self.holds is not False

    @property
    def raises(self) -> bool:
        return isinstance(self.returns, Exception)

    @property
    def result(self) -> Any:
        """The handler's entry in the emission: a list for a generator."""
        if self.raises:
            return None
        return [0, self.returns] if "generator" in self.kind else self.returns


@dataclass
class Outcome:
    """The observable facts of an emission."""

    ran: list[str] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    cancelled_by: str | None = None
    raised: list[str] = field(default_factory=list)
    queued: list[str] = field(default_factory=list)


def expected(specs: list[Spec], *, awaited: bool) -> Outcome:
    """Computes the model's outcome.

    With `awaited`, handlers of equal priority form a group. Otherwise handlers run one by one and async handlers are
    left out.
    """
    outcome, ordered = Outcome(), sorted(specs, key=lambda spec: -spec.priority)
    inline = [spec for spec in ordered if not spec.offload and (awaited or not spec.is_async)]
    for _, group in groupby(inline, key=lambda spec: spec.priority if awaited else spec.name):
        ran = [spec for spec in group if spec.runs]
        outcome.ran += [spec.name for spec in sorted(ran, key=lambda spec: spec.is_async)]
        outcome.raised = [spec.name for spec in ran if spec.raises and spec.on_error == "raise"]
        if outcome.raised:
            outcome.results = []
            return outcome
        outcome.results += [spec.result for spec in ran if spec.result is not None]
        cancelling = [spec.name for spec in ran if spec.returns is False]
        if cancelling:
            outcome.cancelled_by = cancelling[0]
            return outcome
    outcome.queued = [spec.name for spec in ordered if spec.offload and spec.runs]
    return outcome


specs = st.builds(
    Spec,
    name=st.uuids().map(str),
    kind=st.sampled_from(KINDS),
    priority=st.integers(-2, 2),
    holds=st.sampled_from([None, True, False]),
    returns=st.sampled_from([None, 1, "text", False, None]) | st.builds(ValueError),
    on_error=st.sampled_from(["raise", "log"]),
    offload=st.sampled_from([False, False, False, True]),
)
handlers = st.lists(specs, max_size=9, unique_by=lambda spec: spec.name)
check = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def connect(evt: Event, spec: Spec, ran: list[str]) -> None:
    """Connects a handler as the spec describes it."""

    def begin() -> None:
        ran.append(spec.name)

    def sync(sender: object) -> Any:
        begin()
        return finish()

    def finish() -> Any:
        if spec.raises:
            raise spec.returns
        return spec.returns

    def generator(sender: object) -> Any:
        begin()
        yield 0
        yield finish()

    async def coroutine(sender: object) -> Any:
        begin()
        await asyncio.sleep(0)
        return finish()

    async def async_generator(sender: object) -> Any:
        begin()
        yield 0
        yield finish()

    function = dict(zip(KINDS, (sync, generator, coroutine, async_generator), strict=True))[spec.kind]
    condition = None if spec.holds is None else lambda sender: spec.holds
    options: dict[str, Any] = {"condition": condition, "on_error": spec.on_error, "offload": spec.offload}
    on(evt, name=spec.name, priority=spec.priority, **options)(function)


def observed(specs: list[Spec], queue: Any, emit: Callable[[Event], Emission]) -> tuple[Outcome, Emission | None]:
    """Emits with these handlers and returns the actual outcome."""
    evt, outcome, emission = Namespace().event("order.placed"), Outcome(), None
    queue.batches.clear()
    for spec in specs:
        connect(evt, spec, outcome.ran)
    raised: list[Exception] = []
    try:
        emission = emit(evt)
        outcome.results, outcome.cancelled_by = list(emission), emission.cancelled_by
    except ExceptionGroup as group:
        raised = list(group.exceptions)
    except ValueError as error:
        raised = [error]
    outcome.raised = [spec.name for error in raised for spec in specs if spec.returns is error]
    outcome.queued = queue.queued
    return outcome, emission


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Disables the log, because thousands of failures are expected."""
    logging.getLogger("nitro.events").disabled = True
    yield
    logging.getLogger("nitro.events").disabled = False


@check
@given(specs=handlers)
def test_emit_async_follows_the_model(queue: Any, specs: list[Spec]) -> None:
    """Order, results, cancellation, failures and the queue are the model's."""
    seen, emission = observed(specs, queue, lambda evt: asyncio.run(evt.emit_async()))
    assert seen == expected(specs, awaited=True)
    if emission is not None:
        assert list(emission.offloaded) == seen.queued


@check
@given(specs=handlers)
def test_emit_follows_the_model(queue: Any, specs: list[Spec]) -> None:
    """`emit` follows the model too; async handlers take no part in its order."""
    seen, _ = observed(specs, queue, Event.emit)
    assert drain(10)
    by_name = {spec.name: spec for spec in specs}
    seen.ran = [name for name in seen.ran if not by_name[name].is_async]
    assert seen == expected(specs, awaited=False)


@check
@given(specs=handlers)
def test_emit_starts_the_async_handlers_before_its_end(queue: Any, specs: list[Spec]) -> None:
    """Each async handler that is reached is started once; handlers after a cancellation or a failure are not."""
    seen, _ = observed(specs, queue, Event.emit)
    assert drain(10)
    model = expected(specs, awaited=False)
    ordered = [spec for spec in sorted(specs, key=lambda spec: -spec.priority) if not spec.offload]
    last = next(iter(model.raised), model.cancelled_by)
    reached = ordered[: [spec.name for spec in ordered].index(last)] if last else ordered
    by_name = {spec.name: spec for spec in specs}
    started = sorted(name for name in seen.ran if by_name[name].is_async)
    assert started == sorted(spec.name for spec in reached if spec.is_async and spec.runs)


@check
@given(specs=handlers)
def test_reports_are_complete(queue: Any, specs: list[Spec]) -> None:
    """Each reached handler is in exactly one report: it ran, was skipped, or was queued."""
    seen, emission = observed(specs, queue, lambda evt: asyncio.run(evt.emit_async()))
    if emission is None or emission.cancelled_by:
        return
    reports = [*seen.ran, *emission.skipped, *emission.offloaded]
    assert sorted(reports) == sorted(spec.name for spec in specs)
    failed = [spec.name for spec in specs if spec.raises and spec.runs and not spec.offload]
    assert sorted(emission.failed) == sorted(failed)
