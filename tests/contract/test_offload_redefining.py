"""Redefining an offloaded handler, by a reload or a notebook cell: contract section 3."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from nitro.errors import DuplicateHandler
from nitro.infrastructure.events import Event, Namespace, emit, on

pytestmark = pytest.mark.usefixtures("offloading")

Sent = Callable[..., list[Any]]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that writes a module `offload_shop` and imports it, or imports it again."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str, name: str = "offload_shop") -> ModuleType:
        (tmp_path / f"{name}.py").write_text(dedent(source), encoding="utf-8")
        importlib.invalidate_caches()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            loaded = sys.modules.get(name)
            return importlib.import_module(name) if loaded is None else importlib.reload(loaded)
        finally:
            sys.dont_write_bytecode = before

    yield write
    for name in [name for name in sys.modules if name.startswith("offload_shop")]:
        del sys.modules[name]


def test_reload_replaces_handlers(evt: Event, app: Celery, sent: Sent, default: Namespace, write_module: Any) -> None:
    """After `importlib.reload` only the new definition is queued, once, and the task runs it."""
    source = """
        from nitro.infrastructure.events import on

        @on("order-placed", offload=True)
        def handler(sender):
            return "{version}"
    """
    write_module(source.format(version="old"))
    assert "offload_shop.handler" in app.tasks
    module = write_module(source.format(version="new"))
    assert list(emit("order-placed").offloaded) == ["offload_shop.handler"]
    assert len(sent()) == 1
    assert app.tasks["offload_shop.handler"].apply(("ada",)).get() == "new"
    assert list(default["order-placed"].receivers.values()) == [module.handler]


def test_reload_may_move_a_handler_to_another_event(
    app: Celery, sent: Sent, default: Namespace, write_module: Any
) -> None:
    """After a reload the old definition is disconnected from its event."""
    source = """
        from nitro.infrastructure.events import on

        @on("{event}", offload=True)
        def handler(sender):
            return None
    """
    write_module(source.format(event="order-placed"))
    write_module(source.format(event="order-paid"))
    assert [dict(emit(name).offloaded) for name in ("order-placed",)] == [{}]
    assert list(emit("order-paid").offloaded) == ["offload_shop.handler"]


def test_reload_may_change_task_options(app: Celery, default: Namespace, write_module: Any) -> None:
    """The options of a redefinition replace the earlier ones."""
    source = """
        from nitro.infrastructure.events import on

        @on("order-placed", offload={{"max_retries": {retries}}})
        def handler(sender):
            return None
    """
    write_module(source.format(retries=1))
    assert app.tasks["offload_shop.handler"].max_retries == 1
    write_module(source.format(retries=2))
    assert app.tasks["offload_shop.handler"].max_retries == 2


def test_same_definition_executed_twice_replaces(evt: Event, app: Celery, sent: Sent) -> None:
    """A notebook cell that is run again leaves one handler."""

    def cell(version: str) -> None:
        @on(evt, offload=True, name="shop.cell")
        def handler(sender: Any) -> str:
            return version

    cell("old")
    cell("new")
    assert list(emit(evt).offloaded) == ["shop.cell"]
    assert len(sent()) == 1
    assert app.tasks["shop.cell"].apply(("ada",)).get() == "new"


def test_same_name_in_another_file_is_no_redefinition(evt: Event, default: Namespace, write_module: Any) -> None:
    """Only the same function in the same file replaces."""
    source = """
        from nitro.infrastructure.events import on

        @on("order-placed", offload=True, name="shop.handler")
        def handler(sender):
            return None
    """
    write_module(source)
    with pytest.raises(DuplicateHandler, match=r"shop\.handler"):
        write_module(source, name="offload_shop_copy")


def test_a_task_of_the_app_is_not_replaced(evt: Event, app: Celery) -> None:
    """A handler under the name of a plain task of the app is an error, and the task stays."""

    @app.task(name="shop.mail", shared=False)
    def plain() -> None: ...

    app.finalize()
    with pytest.raises(DuplicateHandler, match=r"shop\.mail"):

        @on(evt, offload=True, name="shop.mail")
        def mail(sender: object) -> None: ...

    assert app.tasks["shop.mail"] == plain


SENDING = """
    from nitro.infrastructure.events import on
    from offload_shop_tracing import traced

    @on("order-placed", offload=True, name="shop.send")
    @traced
    def send(sender):
        return None
"""
TRACING = """
    import functools

    def traced(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)
        return wrapper
"""


def test_shared_decorator_does_not_hide_two_functions(app: Celery, default: Namespace, write_module: Any) -> None:
    """Functions of two modules with one decorator are told apart, and the error names their own places."""
    write_module(TRACING, name="offload_shop_tracing")
    write_module(SENDING, name="offload_shop_mail")
    with pytest.raises(DuplicateHandler) as caught:
        write_module(SENDING, name="offload_shop_sms")
    assert re.search(r"offload_shop_mail\.py:\d+.*offload_shop_sms\.py:\d+", str(caught.value))
    assert "offload_shop_tracing" not in str(caught.value)


TWICE = """
    from nitro.infrastructure.events import on

    @on("order-placed", offload=True)
    def handler(sender):
        return "mail"

    @on("order-paid", offload=True)
    def handler(sender):
        return "text message"
"""


def test_one_name_twice_in_a_module_is_no_redefinition(app: Celery, default: Namespace, write_module: Any) -> None:
    """A second function of one name in a module raises, because it would silently replace the first."""
    with pytest.raises(DuplicateHandler, match=r"offload_shop\.handler"):
        write_module(TWICE)


def test_reload_after_an_edit_that_moves_lines_replaces(app: Celery, default: Namespace, write_module: Any) -> None:
    """A function that has moved within its file is still that function."""
    source = """
        from nitro.infrastructure.events import on
        {lines}
        @on("order-placed", offload=True)
        def handler(sender):
            return None
    """
    write_module(source.format(lines=""))
    module = write_module(source.format(lines="REASON = 'an edit'"))
    assert list(default["order-placed"].receivers.values()) == [module.handler]


@pytest.mark.parametrize("offload", [True, False])
def test_static_method_is_its_function(evt: Event, app: Celery, offload: bool) -> None:
    """`@on` above `@staticmethod` connects the function of the class once, and `disconnect` finds it."""

    class Effects:
        @on(evt, offload=offload, name="shop.static")
        @staticmethod
        def mail(sender: object) -> str:
            return "mailed"

    on(evt, offload=offload, name="shop.static")(Effects.mail)
    assert list(evt.receivers_for("ada")) == [Effects.mail]
    assert (emit(evt), len(emit(evt).offloaded)) == (([], 1) if offload else (["mailed"], 0))
    evt.disconnect(Effects.mail)
    assert not evt.receivers


def test_reload_replaces_a_static_method(app: Celery, default: Namespace, write_module: Any) -> None:
    """A class that is made anew leaves one handler, the new one."""
    source = """
        from nitro.infrastructure.events import on

        class Effects:
            @on("order-placed", offload=True)
            @staticmethod
            def mail(sender):
                return None
    """
    write_module(source)
    module = write_module(source)
    assert list(default["order-placed"].receivers.values()) == [module.Effects.mail]
