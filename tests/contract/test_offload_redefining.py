"""Redefining an offloaded handler, by a reload or a notebook cell: contract section 3."""

from __future__ import annotations

import importlib
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
    """Writes a module `offload_shop` and imports it, or imports it again."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str, name: str = "offload_shop") -> ModuleType:
        (tmp_path / f"{name}.py").write_text(dedent(source), encoding="utf-8")
        importlib.invalidate_caches()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            known = sys.modules.get(name)
            return importlib.import_module(name) if known is None else importlib.reload(known)
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
    """The old definition hears nothing any more, on whatever event it was."""
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
    """A redefinition brings its own options along."""
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

    @app.task(name="shop.mail")
    def plain() -> None: ...

    app.finalize()
    with pytest.raises(DuplicateHandler, match=r"shop\.mail"):

        @on(evt, offload=True, name="shop.mail")
        def mail(sender: object) -> None: ...

    assert app.tasks["shop.mail"] == plain
