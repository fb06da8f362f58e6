"""Events with other waits, clocks and observers; the import loads neither Celery nor SQL, as that of the events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nitro.infrastructure.events import background, run
from nitro.infrastructure.events import events as declared
from nitro.infrastructure.events.observers import active_observers

if TYPE_CHECKING:
    import pytest


def exit_wait() -> float:
    """Returns the seconds that the end of a process waits for its async handlers."""
    return background.EXIT_WAIT_SECONDS


def set_exit_wait(seconds: float) -> None:
    """Changes the seconds that the end of this process waits for its async handlers."""
    background.EXIT_WAIT_SECONDS = seconds


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Measures the durations of handlers with another clock."""
    monkeypatch.setattr(run, "perf_counter", clock)


def call_before_each_plan(monkeypatch: pytest.MonkeyPatch, function: Callable[[], None]) -> None:
    """Calls a function when the handlers of an event have been read for a plan, and before the plan is kept."""
    build = declared.PlanCache

    def call_and_build(handlers: Any) -> Any:
        function()
        return build(handlers)

    monkeypatch.setattr(declared, "PlanCache", call_and_build)


@contextmanager
def no_observers() -> Iterator[None]:
    """Removes all observers of emissions in the block, and afterwards those that the block has added."""
    with active_observers.replaced():
        yield


@contextmanager
def further_observers() -> Iterator[None]:
    """Removes the observers that the block has added at its end."""
    with active_observers.replaced(*active_observers):
        yield
