"""An emission is stopped by a False or by a failure: contract section 4."""

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
    """A False stops the handlers after it, and stays in the results."""
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
    """Other falsy results, and a list with False, cancel nothing."""
    on(evt, priority=1)(lambda sender: result)
    evt.connect(lambda sender: "ran")
    emission = emit(evt)
    assert emission[-1] == "ran"
    assert emission.cancelled_by is None


def test_generator_that_yields_false_is_closed_there(evt: Event) -> None:
    """A generator that yields False is closed there; only its cleanup runs."""
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
    """A cancellation stops every offloaded handler, whatever its priority."""
    on(evt, priority=priority, offload=True)(named("offloaded", []))
    evt.connect(lambda sender: False)
    emission = emit(evt)
    assert queue.steps == []
    assert emission.offloaded == {}


def test_exception_propagates_with_the_handlers_name(evt: Event) -> None:
    """The handler's own exception object propagates, with the handler's name in a note."""
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
    """A failure of an inline handler publishes nothing and stops the handlers after it."""
    order: list[str] = []
    on(evt, priority=priority, offload=True)(named("offloaded", order))
    evt.connect(lambda sender: 1 / 0)
    evt.connect(named("after", order))
    with pytest.raises(ZeroDivisionError):
        emit(evt)
    assert queue.steps == []
    assert order == []


def test_generator_that_raises_propagates(evt: Event) -> None:
    """An exception between two yields propagates as the handler's failure."""

    @on(evt)
    def failing(sender: object) -> Any:
        yield 1
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        emit(evt)


def test_on_error_log_lets_the_rest_go_on(evt: Event, queue: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A failure with on_error="log" is logged with its traceback, listed in `failed`, and stops nothing."""
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
    """A generator that fails with on_error="log" leaves no result."""

    @on(evt, on_error="log", name="failing")
    def failing(sender: object) -> Any:
        yield 1
        raise ValueError

    emission = emit(evt)
    assert emission == []
    assert list(emission.failed) == ["failing"]
