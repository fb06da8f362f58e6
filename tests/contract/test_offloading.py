"""Declarations of offloaded handlers, with Nitro's own dispatcher: contract section 3."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nitro.errors import DeclarationError, DuplicateHandler, NotOffloadable, OptionConflict, UnknownOption
from nitro.infrastructure.events import Event, Namespace, on
from support.app import real_dispatcher

Load = Callable[[str], ModuleType]


class Service:
    def send(self, sender: object) -> None: ...

    def __call__(self, sender: object) -> None: ...


def at_module_level(sender: object) -> None: ...


@pytest.fixture(autouse=True)
def publisher() -> Iterator[None]:
    """Installs the real dispatcher, without a Celery app that hears declarations; restores all declarations."""
    with real_dispatcher():
        yield


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads the source of a module; each call uses the same file name."""
    module = ModuleType("shop_handlers")
    module.__file__ = str(tmp_path / "shop_handlers.py")
    module.__dict__["evt"] = Namespace().event("order.placed")
    sys.modules[module.__name__] = module

    def run(source: str) -> ModuleType:
        text = "from nitro.infrastructure.events import on\n" + source
        exec(compile(text, module.__file__ or "", "exec", dont_inherit=True), module.__dict__)
        return module

    yield run
    del sys.modules[module.__name__]


def test_offloaded_function_gains_its_task(evt: Event) -> None:
    """`.task` stands for the Celery task under the handler's name."""
    assert on(evt, offload=True)(at_module_level) is at_module_level
    assert at_module_level.task.name == f"{__name__}.at_module_level"  # type: ignore[attr-defined]  # gained here


def test_explicit_name_is_the_tasks_name(evt: Event) -> None:
    """`name=` replaces `module.qualname`."""
    on(evt, offload=True, name="shop.mail")(at_module_level)
    assert at_module_level.task.name == "shop.mail"  # type: ignore[attr-defined]  # gained here


@pytest.mark.parametrize(
    ("option", "nearest"), [("queu", "queue"), ("max_retry", "max_retries"), ("delivry", "delivery")]
)
def test_unknown_option_suggests_the_nearest(evt: Event, option: str, nearest: str) -> None:
    """A misspelt option raises at import and suggests the nearest name."""
    with pytest.raises(UnknownOption, match=nearest):
        on(evt, offload={option: 1}, name="shop.mail")(at_module_level)
    assert not evt.receivers


@pytest.mark.parametrize("offload", [{"delivery": "sometimes"}, {"entity": "copy"}, "yes", 1])
def test_wrong_option_is_an_error_at_import(evt: Event, offload: object) -> None:
    """An option with an impossible value raises at import."""
    with pytest.raises(DeclarationError):
        on(evt, offload=offload, name="shop.mail")(at_module_level)
    assert not evt.receivers


@pytest.mark.parametrize("kind", ["nested", "lambda"])
def test_local_function_needs_a_name(evt: Event, kind: str) -> None:
    """A nested function or a lambda needs `name=`; the error says so."""

    def nested(sender: object) -> None: ...

    function = nested if kind == "nested" else lambda sender: None
    with pytest.raises(NotOffloadable, match="name="):
        on(evt, offload=True)(function)
    assert on(evt, offload=True, name=f"shop.{kind}")(function) is function


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (Service().send, "bound method"),
        (functools.partial(at_module_level), "partial"),
        (Service(), "instance of Service"),
    ],
)
def test_object_that_a_worker_lacks_cannot_be_offloaded(evt: Event, handler: Any, why: str) -> None:
    """An object that a worker cannot import cannot be offloaded even with a name; the error gives the reason."""
    with pytest.raises(NotOffloadable, match=why):
        on(evt, offload=True, name="shop.mail")(handler)


def test_weak_and_offload_exclude_each_other(evt: Event) -> None:
    """`weak=True` with `offload` raises, because a worker cannot know that the emitter dropped the function."""
    with pytest.raises(DeclarationError, match="weak"):
        on(evt, offload=True, weak=True, name="shop.mail")(at_module_level)


def test_two_functions_under_one_name_are_an_error(evt: Event, load: Load) -> None:
    """Two functions under one name raise an error that names both places."""
    on(evt, offload=True, name="shop.mail")(at_module_level)
    with pytest.raises(DuplicateHandler, match="at_module_level"):
        load("@on(evt, offload=True, name='shop.mail')\ndef other(sender): ...\n")


def test_two_functions_of_one_file_under_one_name_are_an_error(load: Load) -> None:
    """Two functions of the same file under one name raise too."""
    with pytest.raises(DuplicateHandler):
        load(
            "@on(evt, offload=True, name='shop.mail')\ndef first(sender): ...\n"
            "@on(evt, offload=True, name='shop.mail')\ndef second(sender): ...\n"
        )


def test_reload_replaces_the_handler(load: Load) -> None:
    """A redefinition from the same file replaces the earlier function."""
    source = "@on(evt, offload=True)\ndef mail(sender): ...\n"
    old = load(source).mail
    module = load(source)
    assert list(module.evt.receivers_for(None)) == [module.mail]
    assert module.mail is not old


def test_differing_task_options_on_two_events_are_an_error(load: Load) -> None:
    """Different task options for one function on two events raise, because a function has one task."""
    with pytest.raises(OptionConflict, match="max_retries"):
        load(
            "@on('order.paid', offload={'max_retries': 1})\n"
            "@on(evt, offload={'max_retries': 2})\n"
            "def mail(sender): ...\n"
        )


def test_differing_message_options_on_two_events_are_fine(load: Load, default: Namespace) -> None:
    """Message options such as queue, countdown and delivery may differ by registration."""
    module = load(
        "@on('order.paid', offload={'queue': 'slow', 'countdown': 3})\n"
        "@on(evt, offload={'queue': 'fast', 'delivery': 'broker'})\n"
        "def mail(sender): ...\n"
    )
    assert list(module.evt.receivers_for(None)) == list(default["order.paid"].receivers_for(None)) == [module.mail]
