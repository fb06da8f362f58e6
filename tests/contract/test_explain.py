"""`Event.explain`: contract section 4."""

from __future__ import annotations

from typing import Any

import pytest

from nitro.errors import EmitError
from nitro.infrastructure.events import Event, emit, event, on


def fail(*args: Any, **kwargs: Any) -> Any:
    pytest.fail("a handler ran")


async def fail_async(*args: Any, **kwargs: Any) -> Any:
    pytest.fail("a handler ran")


def test_explain_runs_no_handler_and_queues_nothing(evt: Event, queue: Any) -> None:
    """`explain` runs no handler and queues nothing."""
    evt.connect(fail)
    evt.connect(fail_async)
    on(evt, offload=True)(lambda sender: fail())
    evt.explain("ada")
    assert queue.steps == ["payload_sizes"]


def test_explain_lists_handlers_in_order_with_their_place(evt: Event, queue: Any) -> None:
    """Rows list inline handlers by priority, then offloaded handlers by priority."""
    on(evt, name="low", priority=-1)(fail)
    on(evt, name="mail", offload=True)(lambda sender: None)
    on(evt, name="web", offload=True, priority=9)(lambda sender: None)
    on(evt, name="high", priority=1)(fail_async)
    rows = [(row.handler, row.where, row.kind, row.priority) for row in evt.explain("ada")]
    assert rows == [
        ("high", "inline", "async", 1),
        ("low", "inline", "sync", -1),
        ("web", "queue", "sync", 9),
        ("mail", "queue", "sync", 0),
    ]


def test_explain_gives_the_verdict_of_each_condition(evt: Event, queue: Any) -> None:
    """Each row says whether its condition holds, and the error of a condition that raises."""
    on(evt, name="free")(fail)
    on(evt, name="holds", condition=lambda sender, **kwargs: kwargs["total"] > 100)(lambda sender: fail())
    on(evt, name="false", condition=lambda sender, **kwargs: False)(lambda sender: fail())
    on(evt, name="broken", condition=lambda sender, **kwargs: 1 / 0)(lambda sender: fail())
    on(evt, name="queued", offload=True, condition=lambda sender, **kwargs: False)(lambda sender: fail())
    rows = {row.handler: row for row in evt.explain("ada", total=101)}
    assert {name: row.runs for name, row in rows.items()} == {
        "free": True,
        "holds": True,
        "false": False,
        "broken": False,
        "queued": False,
    }
    assert rows["free"].condition is None
    assert "ZeroDivisionError" in (rows["broken"].condition or "")


def test_explain_gives_delivery_and_payload_size(evt: Event, queue: Any) -> None:
    """Rows of offloaded handlers have delivery and payload size; inline ones have neither."""
    on(evt, name="inline")(fail)
    on(evt, name="mail", offload=True)(lambda sender: None)
    on(evt, name="skipped", offload=True, condition=lambda sender: False)(lambda sender: fail())
    on(evt, name="web", offload=True)(lambda sender: fail())
    sizes = {row.handler: (row.delivery, row.payload_size) for row in evt.explain("ada")}
    assert sizes["inline"] == (None, None)
    assert (sizes["mail"], sizes["web"]) == (("broker", 100), ("broker", 101))
    assert sizes["skipped"][1] is None


def test_explain_agrees_with_emit(evt: Event, queue: Any) -> None:
    """`explain` has the handlers, names and verdicts of the emission that follows."""
    for number in range(3):
        on(evt, name="audit", condition=lambda sender, number=number: number != 1)(lambda sender: None)
    on(evt, name="mail", offload=True)(lambda sender: None)
    explained = evt.explain("ada")
    emission = emit(evt, "ada")
    assert [row.handler for row in explained if not row.runs] == list(emission.skipped) == ["audit#2"]
    assert [row.handler for row in explained if row.where == "queue"] == list(emission.offloaded)


def test_explain_asks_for_the_sender(evt: Event) -> None:
    """Only handlers of that sender are listed."""
    on(evt, sender="ada", name="ada's")(fail)
    on(evt, sender="bob", name="bob's")(lambda sender: fail())
    assert [row.handler for row in evt.explain("ada")] == ["ada's"]


def test_explain_prints_one_line_a_handler(evt: Event, queue: Any) -> None:
    """The text names the event, and each handler with its place and size."""
    on(evt, name="shop.validate", priority=10)(fail)
    on(evt, name="shop.mail", offload=True)(lambda sender: None)
    title, first, second = str(evt.explain("ada")).splitlines()
    assert title == "order.placed"
    assert "inline" in first
    assert "shop.validate" in first
    assert "queue" in second
    assert "100 bytes" in second


def test_explain_of_a_muted_event_is_empty(evt: Event) -> None:
    """A muted event would run nothing, so no handler is listed."""
    evt.connect(fail)
    with evt.muted():
        assert evt.explain("ada") == []


def test_explain_of_a_glob_is_an_error(default: Any) -> None:
    """A glob is never emitted, so there is nothing to explain."""
    with pytest.raises(EmitError):
        event("user.*").explain("ada")


def test_explain_refuses_a_sender_by_keyword(evt: Event) -> None:
    """A sender by keyword raises, as in `emit`."""
    evt.connect(fail)
    with pytest.raises(EmitError, match="sender"):
        evt.explain(sender="ada")
