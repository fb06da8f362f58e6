"""Declaring offloaded handlers: contract section 3."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from nitro.errors import DeclarationError, DuplicateHandler, NotOffloadable, OptionConflict, UnknownOption
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload

pytestmark = pytest.mark.usefixtures("offloading")

Sent = Callable[..., list[Any]]


def handler(sender: Any, **kwargs: Any) -> None:
    """A handler at module level."""


async def waiting(sender: Any, **kwargs: Any) -> None:
    """An async handler at module level."""


class Service:
    def method(self, sender: Any) -> None: ...

    def __call__(self, sender: Any) -> None: ...

    @staticmethod
    def static(sender: Any) -> None: ...

    @classmethod
    def of_class(cls, sender: Any) -> None: ...


@pytest.mark.parametrize("offload", [True, Offload(), {}, Offload(queue="mail"), {"queue": "mail"}])
def test_decorating_returns_the_very_same_function(evt: Event, offload: Any) -> None:
    """`on` returns the offloaded function itself, which then has its task."""
    assert on(evt, offload=offload)(handler) is handler
    assert handler.task.name == f"{__name__}.handler"  # type: ignore[attr-defined]


def test_offloaded_function_can_be_called(evt: Event) -> None:
    """A call of an offloaded function runs it in the caller."""
    assert on(evt, offload=True, name="shop.handler")(lambda sender: f"hello {sender}")("ada") == "hello ada"


def test_unknown_option_suggests_the_nearest(evt: Event) -> None:
    """An unknown option raises at import, and the message suggests the nearest one."""
    with pytest.raises(UnknownOption, match="'quueue'; did you mean 'queue'"):
        on(evt, offload={"quueue": "mail"})(handler)
    with pytest.raises(UnknownOption, match="'max_retry'; did you mean 'max_retries'"):
        Offload(max_retry=3)  # type: ignore[call-arg]  # the misuse under test
    assert not evt.receivers


def test_wrong_value_names_option_and_value(evt: Event) -> None:
    """The error of a wrong value names the option and the value."""
    with pytest.raises(DeclarationError, match="max_retries='many'"):
        on(evt, offload={"max_retries": "many"})(handler)
    assert not evt.receivers


@pytest.mark.parametrize("offload", ["queue", 3, [("queue", "mail")], object()])
def test_offload_is_true_options_or_a_dict(evt: Event, offload: Any) -> None:
    """A value for `offload` other than True, options or a dict raises an error."""
    with pytest.raises(DeclarationError, match="neither True"):
        on(evt, offload=offload)(handler)


@pytest.mark.parametrize("offload", [False, None])
def test_false_means_inline(evt: Event, offload: Any) -> None:
    """A handler that is not offloaded has no task."""
    ran: list[Any] = []
    on(evt, offload=offload)(ran.append)
    emit(evt, "ada")
    assert ran == ["ada"]


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (Service().method, "bound method"),
        (Service.of_class, "bound method"),
        (functools.partial(handler, "ada"), "partial"),
        (Service(), "instance of Service"),
        (Service, "instance of"),
        (print, "builtin_function_or_method"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", [None, "shop.handler"])
def test_what_a_worker_could_not_find_is_an_error(evt: Event, function: Any, why: str, name: str | None) -> None:
    """A callable that a worker could not import raises with the reason, also with a name."""
    with pytest.raises(NotOffloadable, match=why):
        on(evt, offload=True, name=name)(function)
    assert not evt.receivers


@pytest.mark.parametrize("kind", ["nested function", "lambda"])
def test_local_function_needs_a_name(evt: Event, kind: str) -> None:
    """A nested function or a lambda can be offloaded only with a name."""

    def nested(sender: Any) -> None: ...

    local = nested if kind == "nested function" else lambda sender: None
    with pytest.raises(NotOffloadable, match=rf"{kind}.*name="):
        on(evt, offload=True)(local)
    assert on(evt, offload=True, name="shop.local")(local).task.name == "shop.local"


def test_static_method_can_be_offloaded(evt: Event, app: Celery, sent: Sent) -> None:
    """A static method can be offloaded, because a worker can import it."""
    on(evt, offload=True)(Service.static)
    assert list(emit(evt).offloaded) == [f"{__name__}.Service.static"]


def test_name_is_module_and_qualified_name(evt: Event, app: Celery) -> None:
    """The handler's name is that of its Celery task."""
    on(evt, offload=True)(handler)
    assert list(emit(evt).offloaded) == [f"{__name__}.handler"]
    assert f"{__name__}.handler" in app.tasks


def test_given_name_is_the_name_of_the_task(evt: Event, app: Celery) -> None:
    """A task can keep its name when its function moves."""
    on(evt, offload=True, name="mail.send")(handler)
    assert list(emit(evt).offloaded) == ["mail.send"]
    assert "mail.send" in app.tasks


def test_two_functions_of_one_name_are_an_error(evt: Event) -> None:
    """The error of two functions of one name has both with their places."""
    on(evt, offload=True, name="shop.handler")(handler)
    with pytest.raises(DuplicateHandler, match=r"handler \(.*:\d+\) and waiting \(.*:\d+\)"):
        on(Event("other"), offload=True, name="shop.handler")(waiting)
    assert list(evt.receivers.values()) == [handler]


def test_one_function_may_hear_several_events(evt: Event, app: Celery, sent: Sent) -> None:
    """A function on several events is one task, which each of them queues."""
    other = Event("other")
    on(evt, offload=True)(on(other, offload=True)(handler))
    assert list(emit(evt).offloaded) == list(emit(other).offloaded) == [f"{__name__}.handler"]
    assert len(sent()) == 2


def test_message_options_may_differ_between_events(evt: Event, app: Celery, sent: Sent) -> None:
    """Queue, countdown, delivery and the like belong to the registration."""
    other = Event("other")
    on(evt, offload=Offload(queue="fast", delivery="broker", entity="reload"))(handler)
    on(other, offload=Offload(queue="slow", countdown=5, delivery="broker"))(handler)
    emit(evt)
    emit(other)
    assert [len(sent("fast")), len(sent("slow"))] == [1, 1]


@pytest.mark.parametrize(
    "options",
    [{"rate_limit": "5/m"}, {"max_retries": 3}, {"time_limit": 5}, {"throws": KeyError}, {"on_missing": "skip"}],
    ids=lambda options: next(iter(options)),
)
def test_task_options_may_not_differ_between_events(evt: Event, options: dict[str, Any]) -> None:
    """Options of the one Celery task may not differ; the error names them."""
    on(evt, offload=True)(handler)
    with pytest.raises(OptionConflict, match=next(iter(options))):
        on(Event("other"), offload=options)(handler)


def test_equal_task_options_on_two_events_are_fine(evt: Event) -> None:
    """A dict and an `Offload` of the same options are the same."""
    on(evt, offload=Offload(rate_limit="5/m", throws=(KeyError,)))(handler)
    on(Event("other"), offload={"rate_limit": "5/m", "throws": KeyError})(handler)


def test_weak_and_offloaded_exclude_each_other(evt: Event) -> None:
    """`weak=True` with `offload` raises, because a worker keeps its handlers."""
    with pytest.raises(DeclarationError, match="weak"):
        on(evt, weak=True, offload=True)(handler)


def test_handler_connected_later_becomes_a_task_at_once(evt: Event, app: Celery) -> None:
    """A handler that is connected after the app is finalized becomes a task at once."""
    app.finalize()
    on(evt, offload=True, name="shop.late")(handler)
    assert "shop.late" in app.tasks


def test_connect_takes_offload_too(evt: Event, app: Celery) -> None:
    """`Event.connect` is `on` as a method."""
    evt.connect(handler, offload=Offload(queue="mail"), name="shop.handler")
    assert list(emit(evt).offloaded) == ["shop.handler"]


def test_disconnected_handler_is_not_queued(evt: Event, app: Celery, sent: Sent) -> None:
    """`disconnect` of an offloaded function takes effect at the next emit."""
    on(evt, offload=True)(handler)
    evt.disconnect(handler)
    assert emit(evt).offloaded == {}
    assert sent() == []


def test_key_of_the_options_that_is_no_text_is_an_error(evt: Event) -> None:
    """A key of the options that is no text raises at import."""
    with pytest.raises(UnknownOption, match="option 1"):
        on(evt, offload={"queue": "mail", 1: 2})(handler)
    assert not evt.receivers


FINALIZED_TWICE = """
    from threading import Event, Thread

    from celery import Celery
    from celery._state import connect_on_app_finalize
    from nitro import on

    started, waits = Event(), Event()

    class App(Celery):
        def finalize(self, auto=False):
            if auto:
                waits.set()
            super().finalize(auto=auto)

    @connect_on_app_finalize
    def hold(app):
        started.set()
        waits.wait(30)

    @on("placed", offload=True, name="shop.mail")
    def mail(sender): ...

    app = App("shop", broker="memory://")
    finalizing = Thread(target=app.finalize, daemon=True)
    finalizing.start()
    started.wait(30)
    answers = []
    asking = Thread(target=lambda: answers.append("shop.mail" in app.tasks), daemon=True)
    asking.start()
    for thread in (finalizing, asking):
        thread.join(10)
        print("hangs" if thread.is_alive() else "over")
    print(answers)
"""


def test_one_thread_may_ask_for_the_tasks_while_another_finalizes_the_app(
    fresh_process: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """A handler's task is made without the lock that kombu holds around `app.tasks`, so no thread hangs."""
    process = fresh_process(FINALIZED_TWICE)
    assert process.stdout.splitlines() == ["over", "over", "[True]"], process.stdout + process.stderr
