"""`.task`, the stand-in of a handler's Celery task: contract section 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from nitro.errors import PayloadError
from nitro.infrastructure.events import ANY, Event, emit, on
from nitro.infrastructure.offload import Offload, current_delivery

Work = Callable[..., Any]
Sent = Callable[..., list[Any]]
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass(frozen=True)
class Money:
    amount: int


@pytest.fixture
def handler(evt: Event, app: Celery) -> Any:
    """An offloaded handler that returns how it was called."""

    def called(*args: Any, **kwargs: Any) -> str:
        return repr((args, kwargs))

    return on(evt, offload={"max_retries": 0}, name="shop.handler")(called)


@pytest.fixture
def plain(app: Celery) -> Any:
    """A task of the user's own."""

    @app.task(name="shop.plain", shared=False)
    def plain(value: int = 1) -> int:
        return value + 1

    return plain


def test_delay_calls_the_handler(app: Celery, work: Work, handler: Any) -> None:
    """`.task.delay(sender, **kwargs)` queues this handler alone, without an emission."""
    assert work(app).of(handler.task.delay("ada", total=3).id) == "(('ada',), {'total': 3})"


def test_delay_uses_the_codec(app: Celery, work: Work, handler: Any) -> None:
    """A call of the task carries every value that an emission can carry."""
    expected = repr(((Money(3), {1, 2}), {"when": WHEN}))
    assert work(app).of(handler.task.delay(Money(3), {1, 2}, when=WHEN).id) == expected


def test_delay_of_what_cannot_travel_raises(handler: Any, sent: Sent) -> None:
    """The call of the task raises the payload error."""
    with pytest.raises(PayloadError):
        handler.task.delay(object())
    assert sent() == []


@pytest.mark.parametrize("name", ["strict.function", "strict.lambda"])
def test_delay_checks_the_signature(evt: Event, app: Celery, sent: Sent, name: str) -> None:
    """A call with wrong arguments raises TypeError in the caller, as with any Celery task."""

    def function(sender: Any, total: int) -> None: ...

    strict = on(evt, offload=True, name=name)(function if "function" in name else lambda sender, total: None)
    with pytest.raises(TypeError):
        strict.task.delay("ada")
    strict.task.delay("ada", 3)
    assert len(sent()) == 1


def test_apply_async_takes_options_of_the_message(handler: Any, sent: Sent) -> None:
    """Celery's options of a call keep their meaning."""
    task_id = handler.task.apply_async(("ada",), {"total": 3}, queue="mail", task_id="chosen", headers={"a": "b"}).id
    (message,) = sent("mail")
    assert (task_id, message.id, message.headers["a"]) == ("chosen", "chosen", "b")


def test_call_takes_the_options_of_the_first_registration(evt: Event, app: Celery, sent: Sent) -> None:
    """Direct calls use the declared queue; an option of the call overrides it."""
    handler = on(evt, offload=Offload(queue="mail"), name="shop.handler")(lambda sender: None)
    handler.task.delay("ada")
    handler.task.s("ada").apply_async()
    handler.task.apply_async(("ada",), queue="urgent")
    assert [len(sent("mail")), len(sent("urgent"))] == [2, 1]


def test_declared_countdown_holds_for_direct_calls(evt: Event, app: Celery, sent: Sent) -> None:
    """A declared countdown applies to direct calls, like the other options of the message."""
    on(evt, offload=Offload(countdown=60), name="shop.handler")(lambda sender: None)
    app.tasks["shop.handler"].delay("ada")
    assert sent()[0].headers["eta"] is not None


def test_calling_the_task_runs_it_here(handler: Any) -> None:
    """Calling the task object runs the handler in this process, as with a Celery task."""
    assert handler.task("ada", total=3) == "(('ada',), {'total': 3})"


def test_apply_runs_it_here_through_the_codec(handler: Any) -> None:
    """`.task.apply()` is Celery's eager call of one task."""
    assert handler.task.apply(("ada",), {"when": WHEN}).get() == repr((("ada",), {"when": WHEN}))


def test_call_without_sender_gives_none(app: Celery, work: Work, handler: Any) -> None:
    """A direct call without a sender passes only its own arguments."""
    assert work(app).of(handler.task.delay(total=3).id) == "((), {'total': 3})"


def test_explicit_any_is_a_sender(app: Celery, work: Work, handler: Any) -> None:
    """`ANY` is passed like any other sender."""
    assert work(app).of(handler.task.delay(ANY).id) == repr(((ANY,), {}))


def test_chain_puts_the_result_before(app: Celery, work: Work, handler: Any, plain: Any) -> None:
    """The result of the previous step becomes the first argument, as in any Celery chain."""
    result = chain(plain.s(2), handler.task.s("ada", total={5})).delay()
    assert work(app).of(result.id) == "((3, 'ada'), {'total': {5}})"


def test_immutable_signature_ignores_the_result(app: Celery, work: Work, handler: Any, plain: Any) -> None:
    """`.si` takes only its own arguments."""
    result = chain(plain.s(2), handler.task.si("ada")).delay()
    assert work(app).of(result.id) == "(('ada',), {})"


def test_handlers_result_goes_to_the_next_step(app: Celery, work: Work, handler: Any) -> None:
    """A handler's result is the first argument of the next step of a chain."""
    result = (handler.task.s("ada") | handler.task.s()).delay()
    assert work(app).of(result.id) == repr((("(('ada',), {})",), {}))


def test_group_of_handler_and_plain_task(app: Celery, work: Work, handler: Any, plain: Any) -> None:
    """A group can contain handlers and plain tasks."""
    result = group(handler.task.s("ada"), plain.s(2)).apply_async()
    worker = work(app)
    assert [worker.of(child.id) for child in result.children] == ["(('ada',), {})", 3]


def test_chord_with_a_handler_as_its_body(app: Celery, work: Work, handler: Any, plain: Any) -> None:
    """The results of the chord's header are the first argument of its body."""
    result = chord([plain.s(1), plain.s(2)])(handler.task.s(total=3))
    assert work(app).of(result.id) == "(([2, 3],), {'total': 3})"


def test_link_calls_a_handler_with_the_result(evt: Event, app: Celery, work: Work, plain: Any) -> None:
    """A handler can be the `link` callback of another task."""
    import threading

    calls, called = [], threading.Event()

    @on(evt, offload=True, name="shop.callback")
    def callback(value: Any, **kwargs: Any) -> None:
        calls.append((value, kwargs))
        called.set()

    work(app)
    plain.apply_async((2,), link=callback.task.s(reason="linked"))
    assert called.wait(10)
    assert calls == [(3, {"reason": "linked"})]


def test_signature_can_be_extended(app: Celery, work: Work, handler: Any) -> None:
    """Arguments of the later call precede the arguments of the signature, as in Celery."""
    assert work(app).of(handler.task.s("ada").delay("bob").id) == "(('bob', 'ada'), {})"


def test_delivery_of_a_direct_call_has_no_event(evt: Event, app: Celery, work: Work) -> None:
    """The delivery of a direct call has no event, but an emission id and an idempotency key."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any) -> Any:
        delivery = current_delivery()
        assert delivery is not None
        return [delivery.event, bool(delivery.emission), bool(delivery.idempotency_key)]

    assert work(app).of(handler.task.delay("ada").id) == [None, True, True]


def test_direct_call_inside_a_handler_knows_its_cause(evt: Event, app: Celery, work: Work) -> None:
    """A direct call inside a handler belongs to the tree of that handler's emission."""
    seen = []

    @on(Event("other"), offload=True, name="shop.inner")
    def inner(sender: Any) -> None:
        delivery = current_delivery()
        assert delivery is not None
        seen.append(delivery.root)

    ids = []
    on(evt, offload=True, name="shop.outer")(lambda sender: ids.append(inner.task.delay("ada").id))
    worker = work(app)
    emission = emit(evt)
    worker.only(emission)
    worker.of(ids[0])
    assert seen == [emission.id]


def test_stand_in_is_lazy(evt: Event, offloading: None, make_app: Callable[..., Celery]) -> None:
    """The stand-in exists before an app is bound, and looks its task up in the current app."""
    from nitro.infrastructure.offload import bind

    handler = on(evt, offload=True, name="shop.handler")(lambda sender: None)
    assert handler.task.name == "shop.handler"
    assert "shop.handler" in repr(handler.task)
    app = bind(make_app())
    assert handler.task.app is app


def test_unknown_attribute_is_an_attribute_error(handler: Any) -> None:
    """An attribute that the task lacks raises AttributeError on the stand-in too."""
    with pytest.raises(AttributeError):
        _ = handler.task.no_such_thing
    assert not hasattr(handler.task, "__no_such_thing__")


def test_calling_the_task_returns_what_the_handler_returns(evt: Event, app: Celery) -> None:
    """A call in this process returns the handler's own object, because no result backend is involved."""
    result = {1, 2}
    handler = on(evt, offload=True, name="shop.handler")(lambda sender: result)
    assert handler.task("ada") is result


def test_assigning_to_the_stand_in_is_an_error(handler: Any) -> None:
    """Assigning an attribute on the stand-in raises, because the value would reach no worker."""
    with pytest.raises(AttributeError):
        handler.task.rate_limit = "1/m"
    assert handler.task.rate_limit is None
