"""`emit` and the Emission it returns: contract section 4."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from nitro.errors import EmitError, PayloadError
from nitro.infrastructure.events import ANY, Emission, Event, emit, on


def named(name: str, order: list[str], result: Any = None) -> Any:
    def handler(sender: object, *args: Any, **kwargs: Any) -> Any:
        order.append(name)
        return result

    handler.__qualname__ = name
    return handler


def test_highest_priority_runs_first(evt: Event) -> None:
    """Handlers run by priority, whatever the order of their registration."""
    order: list[str] = []
    for name, priority in (("low", -1), ("high", 10), ("middle", 0)):
        on(evt, priority=priority)(named(name, order))
    emit(evt)
    assert order == ["high", "middle", "low"]


def test_equal_priorities_run_in_registration_order(evt: Event) -> None:
    """Handlers of equal priority run in the order of their registration."""
    order: list[str] = []
    names = [f"handler{number}" for number in range(20)]
    for name in names:
        on(evt)(named(name, order))
    emit(evt)
    assert order == names


def test_handler_gets_sender_and_arguments(evt: Event) -> None:
    """A handler gets sender and arguments unchanged."""
    evt.connect(lambda *args, **kwargs: (args, kwargs))
    assert emit(evt, "ada", 1, 2, reason="new") == [(("ada", 1, 2), {"reason": "new"})]


def test_sender_is_any_when_none_is_given(evt: Event) -> None:
    """A handler gets `ANY` from an emit without a sender."""
    evt.connect(lambda sender: sender is ANY)
    assert emit(evt) == [True]


@pytest.mark.parametrize("kind", ["function", "method"])
def test_sender_by_keyword_is_a_type_error(evt: Event, kind: str) -> None:
    """The sender is positional, so that a handler's own `sender` parameter cannot clash."""
    evt.connect(lambda sender, **kwargs: pytest.fail("ran"))
    with pytest.raises(TypeError, match="sender"):
        emit(evt, sender="ada") if kind == "function" else evt.emit(sender="ada")


def test_results_leave_out_none(evt: Event) -> None:
    """Every returned value but None is a result, falsy values included."""
    for result in (None, 0, "", [], "text", None):
        evt.connect(lambda sender, result=result: result)
    assert emit(evt) == [0, "", [], "text"]


def test_method_emit_does_the_same(evt: Event) -> None:
    """`Event.emit` is `emit` as a method."""
    evt.connect(lambda sender, **kwargs: (sender, kwargs))
    assert evt.emit("ada", reason="new") == emit(evt, "ada", reason="new") == [("ada", {"reason": "new"})]


def test_generator_is_drained_to_a_list(evt: Event) -> None:
    """The result of a generator is the list of its values, also an empty one."""

    @on(evt)
    def three(sender: object) -> Any:
        yield from (1, None, 3)

    @on(evt)
    def nothing(sender: object) -> Any:
        yield from ()

    assert emit(evt) == [[1, None, 3], []]


def test_payload_that_cannot_travel_is_raised_by_emit(evt: Event, queue: Any) -> None:
    """A PayloadError is raised by the emit, and nothing is published."""
    queue.error = PayloadError("sender", "socket", "it is open", ["mail"])
    on(evt, offload=True, name="mail")(named("mail", []))
    with pytest.raises(PayloadError):
        emit(evt)
    assert queue.batches == []


def test_publishing_waits_for_the_commit(evt: Event, queue: Any, open_transaction: Any) -> None:
    """The payload in a transaction is encoded at the emit and published after the commit."""
    on(evt, offload=True, name="mail")(named("mail", []))
    emission = emit(evt)
    assert queue.steps == ["dispatch"]
    assert list(emission.offloaded) == ["mail"]
    open_transaction.commit()
    assert queue.batches == [["mail"]]


def test_emit_works_in_any_thread(evt: Event) -> None:
    """Handlers run on the thread that emits."""
    evt.connect(lambda sender: threading.get_ident())
    results: list[Emission] = []
    thread = threading.Thread(target=lambda: results.append(emit(evt)))
    thread.start()
    thread.join()
    assert results == [[thread.ident]]


def test_emitting_a_text_that_no_event_has_creates_it(default: Any) -> None:
    """An emit by name needs no declaration."""
    assert emit("never-declared").event == "never-declared"


def test_emit_refuses_what_is_no_event() -> None:
    """A wrong first argument is an error of its own, not an attribute error."""
    with pytest.raises(TypeError):
        emit(3)  # type: ignore[arg-type]  # the misuse under test


def test_muted_event_neither_calls_nor_queues(evt: Event, queue: Any) -> None:
    """`muted()` holds for offloaded handlers too."""
    evt.connect(lambda sender: "ran")
    on(evt, offload=True)(named("mail", []))
    with evt.muted():
        assert emit(evt) == []
        assert queue.steps == []
    assert emit(evt) == ["ran"]
    assert queue.batches != []


def test_glob_cannot_be_emitted(default: Any) -> None:
    """Emitting a glob raises."""
    with pytest.raises(EmitError, match="glob"):
        emit("order.*")


def test_note_is_added_once(evt: Event) -> None:
    """An exception that a handler raises several times has its note once."""
    error = ValueError("no stock")

    @on(evt, name="shop.reserve")
    def reserve(sender: object) -> None:
        raise error

    for _ in range(3):
        with pytest.raises(ValueError, match="no stock"):
            emit(evt)
    assert ["shop.reserve" in note for note in error.__notes__] == [True]
