"""What stops an emission: a False, or a failure: contract section 4."""

from __future__ import annotations

from typing import Any

import pytest

from nitro.infrastructure.events import Event, emit, on


def named(name: str, order: list[str], result: Any = None) -> Any:
    def handler(sender: object, *args: Any, **kwargs: Any) -> Any:
        order.append(name)
        return result

    handler.__qualname__ = name
    return handler


def test_false_stops_the_handlers_after_it(evt: Event) -> None:
    """Cancelling is for those that have not run yet, and the False stays in the results."""
    order: list[str] = []
    on(evt, priority=2)(named("before", order, "ran"))
    on(evt, priority=1, name="gate")(named("gate", order, result=False))
    on(evt)(named("after", order))
    emission = emit(evt)
    assert order == ["before", "gate"]
    assert emission == ["ran", False]
    assert emission.cancelled_by == "gate"


@pytest.mark.parametrize("result", [0, None, "", [], [False]])
def test_only_the_object_false_cancels(evt: Event, result: Any) -> None:
    """Other falsy results are results, also a list that a function returns."""
    on(evt, priority=1)(lambda sender: result)
    evt.connect(lambda sender: "ran")
    emission = emit(evt)
    assert emission[-1] == "ran"
    assert emission.cancelled_by is None


def test_generator_that_yields_false_is_closed_there(evt: Event) -> None:
    """A generator cancels by yielding False; what follows in it does not run, its cleanup does."""
    steps: list[str] = []

    @on(evt, priority=1, name="gate")
    def gate(sender: object) -> Any:
        try:
            yield 1
            yield False
            steps.append("went on")
        finally:
            steps.append("closed")

    evt.connect(named("after", steps))
    emission = emit(evt)
    assert steps == ["closed"]
    assert emission == [[1, False]]
    assert emission.cancelled_by == "gate"


@pytest.mark.parametrize("priority", [-10, 0, 10])
def test_cancelling_stops_every_offloaded_handler(evt: Event, queue: Any, priority: int) -> None:
    """It does not matter where an offloaded handler stands: nothing is published."""
    on(evt, priority=priority, offload=True)(named("offloaded", []))
    evt.connect(lambda sender: False)
    emission = emit(evt)
    assert queue.steps == []
    assert emission.offloaded == {}


def test_exception_propagates_with_the_handlers_name(evt: Event) -> None:
    """The very exception comes out, and its note says whose it is."""
    error = ValueError("no stock")

    @on(evt, name="shop.reserve")
    def reserve(sender: object) -> None:
        raise error

    with pytest.raises(ValueError, match="no stock") as caught:
        emit(evt)
    assert caught.value is error
    assert any("shop.reserve" in note for note in error.__notes__)


@pytest.mark.parametrize("priority", [-10, 0, 10])
def test_exception_publishes_nothing_and_stops_the_rest(evt: Event, queue: Any, priority: int) -> None:
    """A failure in an inline handler leaves nothing behind in the queue."""
    order: list[str] = []
    on(evt, priority=priority, offload=True)(named("offloaded", order))
    evt.connect(lambda sender: 1 / 0)
    evt.connect(named("after", order))
    with pytest.raises(ZeroDivisionError):
        emit(evt)
    assert queue.steps == []
    assert order == []


def test_generator_that_raises_propagates(evt: Event) -> None:
    """A failure between two yields is a failure of the handler."""

    @on(evt)
    def failing(sender: object) -> Any:
        yield 1
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        emit(evt)


def test_on_error_log_lets_the_rest_go_on(evt: Event, queue: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged with its traceback, listed in `failed`, and stops nothing."""
    on(evt, priority=1, on_error="log", name="shop.audit")(lambda sender: 1 / 0)
    on(evt)(lambda sender: "ran")
    on(evt, offload=True, name="shop.mail")(named("mail", []))
    emission = emit(evt)
    assert emission == ["ran"]
    assert isinstance(emission.failed["shop.audit"], ZeroDivisionError)
    assert queue.queued == ["shop.mail"]
    (record,) = caplog.records
    assert "shop.audit" in record.getMessage()
    assert evt.name in record.getMessage()
    assert record.exc_info is not None


def test_on_error_log_covers_a_generator(evt: Event) -> None:
    """What a failing generator yielded before is no result."""

    @on(evt, on_error="log", name="failing")
    def failing(sender: object) -> Any:
        yield 1
        raise ValueError

    emission = emit(evt)
    assert emission == []
    assert list(emission.failed) == ["failing"]
