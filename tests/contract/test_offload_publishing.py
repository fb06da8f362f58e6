"""Publishing offloaded handlers: contract sections 1, 3 and 4."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from celery.signals import before_task_publish

from nitro.errors import EmitError, PayloadError
from nitro.infrastructure.events import Event, emit, emit_async, on

Sent = Callable[..., list[Any]]


def offloaded(evt: Event, *names: str, **options: Any) -> None:
    """Connects an offloaded handler of each name."""
    for name in names:
        on(evt, offload=options or True, name=name)(_named(name))


def _named(name: str) -> Any:
    def handler(sender: Any, *args: Any, **kwargs: Any) -> None: ...

    handler.__qualname__ = name
    return handler


def test_every_offloaded_handler_becomes_one_task(evt: Event, app: Celery, sent: Sent) -> None:
    """Handlers are queued in the order in which inline ones would run."""
    offloaded(evt, "shop.first", "shop.second")
    on(evt, offload=True, priority=9, name="shop.urgent")(_named("shop.urgent"))
    emit(evt, "ada")
    assert [message.name for message in sent()] == ["shop.urgent", "shop.first", "shop.second"]


def test_emission_is_published_as_one_batch(evt: Event, app: Celery, batch_sizes: list[int]) -> None:
    """All messages of an emission are one batch."""
    offloaded(evt, "shop.a", "shop.b", "shop.c")
    emit(evt)
    assert batch_sizes == [3]


def test_nothing_is_asked_of_the_broker_without_offloaded_handlers(
    evt: Event, app: Celery, batch_sizes: list[int]
) -> None:
    """An event with inline handlers only publishes no batch."""
    evt.connect(lambda sender: None)
    emit(evt)
    assert batch_sizes == []


def test_offloaded_maps_handlers_to_task_ids(evt: Event, app: Celery, sent: Sent) -> None:
    """`Emission.offloaded` names the Celery tasks that were queued."""
    offloaded(evt, "shop.a", "shop.b")
    emission = emit(evt)
    assert {message.name: message.id for message in sent()} == emission.offloaded


def test_task_ids_follow_from_emission_and_handler(evt: Event, app: Celery, sent: Sent) -> None:
    """Task ids are UUIDs that differ by handler and by emission."""
    offloaded(evt, "shop.a", "shop.b")
    ids = [*emit(evt).offloaded.values(), *emit(evt).offloaded.values()]
    assert len(set(map(UUID, ids))) == 4


def test_ids_are_known_before_anything_is_published(evt: Event, app: Celery) -> None:
    """A subscriber of Celery's publish signal can look its emission up already."""
    offloaded(evt, "shop.a")
    seen = []

    def note(headers: Any, **_signal: Any) -> None:
        seen.append(headers["id"])

    before_task_publish.connect(note)
    try:
        emission = emit(evt)
    finally:
        before_task_publish.disconnect(note)
    assert seen == list(emission.offloaded.values())


def test_sender_and_arguments_travel(evt: Event, app: Celery, sent: Sent) -> None:
    """The payload has the sender and the arguments of the emit."""
    offloaded(evt, "shop.a")
    emit(evt, "ada", (1, 2), when=datetime(2026, 1, 2, tzinfo=UTC))
    payload = sent()[0].payload
    assert (payload.sender, payload.args) == ("ada", ((1, 2),))
    assert payload.kwargs == {"when": datetime(2026, 1, 2, tzinfo=UTC)}


def test_message_is_json_in_celerys_protocol(evt: Event, app: Celery, sent: Sent) -> None:
    """Messages are JSON of Celery's protocol 2, without pickle."""
    offloaded(evt, "shop.a")
    emit(evt)
    message = sent()[0]
    assert (message.headers["lang"], message.args, list(message.kwargs)) == ("py", [], ["__nitro__"])


@pytest.mark.parametrize("emitting", ["emit", "emit_async"])
def test_cancelled_emission_publishes_nothing(evt: Event, app: Celery, sent: Sent, emitting: str) -> None:
    """A False of an inline handler keeps every offloaded handler from being queued."""
    on(evt, offload=True, priority=9, name="shop.a")(_named("shop.a"))
    on(evt)(lambda sender: False)
    emission = emit(evt) if emitting == "emit" else asyncio.run(emit_async(evt))
    assert emission.offloaded == {}
    assert sent() == []


@pytest.mark.parametrize("emitting", ["emit", "emit_async"])
def test_failed_emission_publishes_nothing(evt: Event, app: Celery, sent: Sent, emitting: str) -> None:
    """An inline handler that raises keeps offloaded handlers from being queued."""
    offloaded(evt, "shop.a")

    @on(evt)
    def failing(sender: Any) -> None:
        raise ValueError("no stock")

    with pytest.raises(ValueError, match="no stock"):
        emit(evt) if emitting == "emit" else asyncio.run(emit_async(evt))
    assert sent() == []


def test_emit_async_publishes(evt: Event, app: Celery, sent: Sent) -> None:
    """Offloaded handlers are queued after the inline handlers have been awaited."""
    offloaded(evt, "shop.a", "shop.b")
    emission = asyncio.run(emit_async(evt))
    assert {message.name: message.id for message in sent()} == emission.offloaded


def test_payload_error_publishes_nothing(evt: Event, app: Celery, sent: Sent) -> None:
    """A value that the codec does not support keeps all handlers from being queued."""
    offloaded(evt, "shop.a", "shop.b")
    with pytest.raises(PayloadError):
        emit(evt, lambda: None)
    assert sent() == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_wrong_signature_publishes_nothing(evt: Event, app: Celery, sent: Sent, kind: str) -> None:
    """A handler that does not take the arguments raises at the emit, by name, and not in the worker."""
    offloaded(evt, "shop.a")

    def plain(sender: Any, total: int) -> None: ...

    async def waiting(sender: Any, total: int) -> None: ...

    on(evt, offload=True, name="shop.strict")(plain if kind == "sync" else waiting)
    with pytest.raises(EmitError, match=r"shop\.strict does not take"):
        emit(evt, "ada", amount=3)
    assert sent() == []


def test_wrong_signature_of_a_lambda_is_found_out(evt: Event, app: Celery, sent: Sent) -> None:
    """The arguments of a lambda are checked at the emit, too."""
    on(evt, offload=True, name="shop.strict")(lambda sender, total: None)
    with pytest.raises(EmitError, match=r"shop\.strict does not take"):
        emit(evt, "ada", amount=3)
    emit(evt, "ada", total=3)
    assert len(sent()) == 1


def test_condition_of_an_offloaded_handler_is_asked_after_the_inline_ones(evt: Event, app: Celery, sent: Sent) -> None:
    """The condition of an offloaded handler runs after inline handlers, and False skips that handler only."""
    order: list[str] = []

    def condition(sender: Any) -> bool:
        order.append("condition")
        return False

    on(evt, offload=True, priority=9, condition=condition, name="shop.a")(_named("shop.a"))
    offloaded(evt, "shop.b")
    evt.connect(lambda sender: order.append("inline"))
    emission = emit(evt)
    assert order == ["inline", "condition"]
    assert [message.name for message in sent()] == ["shop.b"] == list(emission.offloaded)
    assert list(emission.skipped) == ["shop.a"]


def test_glob_handlers_are_queued(default: Any, app: Celery, sent: Sent) -> None:
    """An offloaded handler of a glob hears events that were created later."""
    on("order.*", offload=True, name="shop.audit")(_named("shop.audit"))
    assert list(emit("order.paid", "ada").offloaded) == ["shop.audit"]
    assert len(sent()) == 1


def test_function_that_matches_twice_is_queued_once(default: Any, app: Celery, sent: Sent) -> None:
    """A function with two matching registrations is queued once, by the first."""
    function = _named("shop.a")
    on("order.*", offload={"queue": "first"}, name="shop.a")(function)
    on("order.paid", offload={"queue": "second"}, name="shop.a")(function)
    emit("order.paid")
    assert [len(sent("first")), len(sent("second"))] == [1, 0]


def test_muted_event_queues_nothing(evt: Event, app: Celery, sent: Sent) -> None:
    """blinker's `muted()` holds for offloaded handlers as well."""
    offloaded(evt, "shop.a")
    with evt.muted():
        emit(evt)
    assert sent() == []


def test_explain_says_what_would_be_queued(evt: Event, app: Celery, sent: Sent) -> None:
    """`explain` gives delivery and payload size, and publishes nothing."""
    offloaded(evt, "shop.a", delivery="broker")
    (verdict,) = evt.explain("ada", total=3)
    assert (verdict.where, verdict.delivery) == ("queue", "broker")
    assert verdict.payload_size
    assert sent() == []


def test_emit_works_in_any_thread(evt: Event, app: Celery, sent: Sent) -> None:
    """Several threads publish at once through the app's pool."""
    offloaded(evt, "shop.a")
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        emissions = list(pool.map(lambda number: emit(evt, number), range(20)))
    assert {message.id for message in sent()} == {emission.offloaded["shop.a"] for emission in emissions}
