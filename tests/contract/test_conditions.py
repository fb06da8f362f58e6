"""Conditions, and when they are asked: contract section 3."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from nitro.errors import DeclarationError
from nitro.infrastructure.events import Event, emit, on


def named(name: str, order: list[str], result: Any = None) -> Any:
    def handler(sender: object, *args: Any, **kwargs: Any) -> Any:
        order.append(name)
        return result

    handler.__qualname__ = name
    return handler


class Unspeakable(Exception):
    """An exception whose `str()` raises."""

    def __str__(self) -> str:
        raise LookupError


def unspeakable(sender: object) -> bool:
    """A condition that raises an exception whose `str()` raises."""
    raise Unspeakable


def test_condition_that_is_false_skips(evt: Event) -> None:
    """A condition gets the handler's arguments, and a false result skips the handler and lists it."""
    calls: list[Any] = []

    def condition(*args: Any, **kwargs: Any) -> bool:
        calls.append((args, kwargs))
        return False

    on(evt, condition=condition, name="shop.alert")(lambda *args, **kwargs: "ran")
    emission = emit(evt, "ada", 1, reason="new")
    assert calls == [(("ada", 1), {"reason": "new"})]
    assert emission == []
    assert list(emission.skipped) == ["shop.alert"]


def test_condition_that_holds_is_not_listed(evt: Event) -> None:
    """`skipped` lists only handlers whose condition was false; a cancelled handler is not among them."""
    on(evt, condition=lambda sender: True)(lambda sender: False)
    on(evt)(lambda sender: "not reached")
    emission = emit(evt)
    assert emission == [False]
    assert emission.skipped == {}


def test_condition_that_raises_skips_and_is_logged(evt: Event, caplog: pytest.LogCaptureFixture) -> None:
    """A condition that raises skips its handler and is logged, and the emission continues."""
    on(evt, condition=lambda sender: sender.total > 100, name="shop.alert")(lambda sender: "ran")
    emission = emit(evt, "ada")
    assert emission == []
    assert "AttributeError" in emission.skipped["shop.alert"]
    (record,) = caplog.records
    assert "shop.alert" in record.getMessage()
    assert record.exc_info is not None


def test_condition_whose_error_cannot_be_told_skips(evt: Event) -> None:
    """A condition whose exception has no text skips its handler, and the emission continues."""
    on(evt, condition=unspeakable, name="shop.alert")(lambda sender: "ran")
    on(evt, name="shop.count")(lambda sender: "counted")
    emission = emit(evt, "ada")
    assert emission == ["counted"]
    assert emission.skipped == {"shop.alert": "condition raised Unspeakable: <exception str() failed>"}


def test_condition_is_asked_just_before_its_handlers_turn(evt: Event) -> None:
    """A condition sees the effects of handlers of higher priority."""
    order: dict[str, bool] = {"paid": False}
    on(evt, condition=lambda sender: sender["paid"])(lambda sender: "ran")
    on(evt, priority=1)(lambda sender: sender.update(paid=True))
    assert emit(evt, order) == ["ran"]


def test_condition_of_an_offloaded_handler_is_asked_after_the_inline_ones(evt: Event, queue: Any) -> None:
    """An inline handler of low priority decides about an offloaded handler of high priority."""
    order: dict[str, bool] = {"paid": False}
    on(evt, priority=9, offload=True, name="mail", condition=lambda sender: sender["paid"])(named("mail", []))
    on(evt, priority=-9)(lambda sender: sender.update(paid=True))
    emit(evt, order)
    assert queue.queued == ["mail"]


def test_condition_of_an_offloaded_handler_is_not_asked_after_a_cancellation(evt: Event, queue: Any) -> None:
    """After a cancellation the conditions of offloaded handlers are not asked."""
    on(evt, offload=True, condition=lambda sender: pytest.fail("asked"))(named("mail", []))
    evt.connect(lambda sender: False)
    assert emit(evt).skipped == {}


def test_offloaded_handlers_leave_as_one_batch_after_the_inline_ones(evt: Event, queue: Any) -> None:
    """Offloaded handlers are one batch, ordered by priority, after every inline handler."""
    on(evt, priority=1, offload=True, name="second")(named("second", []))
    on(evt, priority=-5)(lambda sender: queue.steps.append("inline"))
    on(evt, priority=9, offload=True, name="first")(named("first", []))
    on(evt, priority=1, offload=True, name="third")(named("third", []))
    on(evt, offload=True, name="skipped", condition=lambda sender: False)(named("skipped", []))
    emission = emit(evt)
    assert queue.steps == ["inline", "dispatch", "publish"]
    assert queue.batches == [["first", "second", "third"]]
    assert list(emission.offloaded) == ["first", "second", "third"]
    assert list(emission.skipped) == ["skipped"]


def test_nothing_is_dispatched_when_no_condition_holds(evt: Event, queue: Any) -> None:
    """Without a handler whose condition holds, nothing is dispatched."""
    on(evt, offload=True, condition=lambda sender: False)(named("mail", []))
    emit(evt)
    assert queue.steps == []


async def never(sender: object) -> bool:
    return False


class Rules:
    @staticmethod
    async def never(sender: object) -> bool:
        return False


@pytest.mark.parametrize(
    "condition",
    [lambda sender: never(sender), functools.wraps(never)(lambda sender: never(sender))],
    ids=["lambda", "wrapper"],
)
def test_condition_that_turns_out_to_be_async_skips(
    evt: Event, caplog: pytest.LogCaptureFixture, condition: Any
) -> None:
    """A condition that returns a coroutine skips its handler, and is listed and logged."""
    on(evt, condition=condition, name="shop.alert")(lambda sender: "ran")
    emission = emit(evt)
    assert emission == []
    assert "async" in emission.skipped["shop.alert"]
    (record,) = caplog.records
    assert "shop.alert" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("condition", [Rules.never, Rules.__dict__["never"]], ids=["function", "staticmethod"])
def test_async_static_method_is_no_condition(evt: Event, condition: Any) -> None:
    """An async static method as a condition is an error at import, also as a `staticmethod` object."""
    with pytest.raises(DeclarationError, match="condition"):
        on(evt, condition=condition)(lambda sender: "ran")
    assert not evt.receivers
