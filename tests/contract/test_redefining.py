"""Handlers are replaced by a reload or a cell, and kept if a run connects several on purpose: contract section 3."""

from __future__ import annotations

import functools
import importlib
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

from nitro.infrastructure.events import Event, Namespace, emit, event, on

Write = Callable[[str], ModuleType]
Cell = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: Namespace) -> Iterator[Write]:
    """Writes the module `redefined`, and imports or reloads it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str) -> ModuleType:
        (tmp_path / "redefined.py").write_text("from nitro import emit, event, on\n" + dedent(source))
        importlib.invalidate_caches()
        module = sys.modules.get("redefined")
        return importlib.import_module("redefined") if module is None else importlib.reload(module)

    yield write
    sys.modules.pop("redefined", None)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch, default: Namespace) -> Cell:
    """Runs a cell of an interactive session; each source has its own file name unless one is passed."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec("from nitro import emit, event, on", main.__dict__)

    def run(source: str, file: str | None = None) -> None:
        source = dedent(source)
        exec(compile(source, file or f"/tmp/ipykernel_1/{abs(hash(source))}.py", "exec"), main.__dict__)

    return run


ONE = """
    {edit}
    @on("placed")
    def confirm(order):
        return {result!r}
"""
TWO = """
    {edit}
    @on("placed")
    def _(order):
        return "{version} first"

    @on("placed")
    def _(order):
        return "{version} second"
"""
KINDS = {
    "async": "@on('placed')\nasync def h(order): ...",
    "weak": "@on('placed', weak=True)\ndef h(order): ...",
    "glob": "@on('place*')\ndef h(order): ...",
    "sender": "@on('placed', sender=str)\ndef h(order): ...",
    "named": "@on('placed', name='shop.h')\ndef h(order): ...",
    "static": "class A:\n    @on('placed')\n    @staticmethod\n    def h(order): ...",
    "lambda": "h = on('placed')(lambda order: 1)",
    "partial": "import functools\ndef f(n, order): ...\nh = on('placed')(functools.partial(f, 1))",
    "method": "class A:\n    def h(self, order): ...\na = A()\non('placed')(a.h)",
    "instance": "class A:\n    def __call__(self, order): ...\na = A()\non('placed')(a)",
    "closure": "def make():\n    @on('placed')\n    def h(order): ...\n    return h\nmake()",
    "wrapped": "import functools\ndef traced(f):\n    @functools.wraps(f)\n    def w(order): ...\n    return w\n"
    "@on('placed')\n@traced\ndef h(order): ...",
    "late": "def h(order): ...\ndef setup():\n    on('placed')(h)\nsetup()",
}


@pytest.mark.parametrize("edit", ["", "REASON = 'moves the lines below'\n"])
def test_a_reload_replaces_an_inline_handler(write: Write, edit: str) -> None:
    """A reload replaces an inline handler, even if it has moved within its file."""
    write(ONE.format(edit="", result="old"))
    write(ONE.format(edit=edit, result="new"))
    assert emit("placed") == ["new"]


@pytest.mark.parametrize("source", KINDS.values(), ids=KINDS)
def test_a_reload_replaces_a_handler_of_any_kind(write: Write, source: str) -> None:
    """A reload connects the same handlers as a first import."""
    write(source)
    write(source)
    write("\n" + source)
    assert len(event("placed").receivers) == 1


@pytest.mark.parametrize("source", KINDS.values(), ids=KINDS)
def test_a_cell_that_runs_again_replaces_a_handler_of_any_kind(cell: Cell, source: str) -> None:
    """A cell that runs again replaces its handlers, as a reload does."""
    cell(source)
    cell(source)
    assert len(event("placed").receivers) == 1


def test_a_reload_may_move_an_inline_handler_to_another_event(write: Write) -> None:
    """After a reload the old definition hears nothing."""
    source = "@on('{event}')\ndef h(order):\n    return 1"
    write(source.format(event="placed"))
    write(source.format(event="paid"))
    assert (emit("placed"), emit("paid")) == ([], [1])


def test_a_reload_may_have_a_handler_run_inline(write: Write, offloading: Any) -> None:
    """A handler that a reload makes inline is no longer queued."""
    source = "@on('placed', offload={offload})\ndef h(order):\n    return 1"
    write(source.format(offload=True))
    write(source.format(offload=False))
    emission = emit("placed")
    assert (emission, emission.offloaded) == ([1], {})


def test_two_functions_of_one_name_in_a_module_are_both_heard(write: Write) -> None:
    """Two functions of one name are both heard, and both are replaced by a reload."""
    write(TWO.format(edit="", version="old"))
    assert emit("placed") == ["old first", "old second"]
    write(TWO.format(edit="MOVED = True", version="new"))
    assert emit("placed") == ["new first", "new second"]


def test_a_cell_that_is_edited_replaces_both_of_its_functions(cell: Cell) -> None:
    """An edited cell replaces both of its functions, although its file name is new."""
    cell(TWO.format(edit="", version="old"))
    cell(TWO.format(edit="MOVED = True", version="new"))
    assert emit("placed") == ["new first", "new second"]


def test_cells_that_share_a_file_name_replace_as_well(cell: Cell) -> None:
    """Cells with one file name, as of `exec` or a console, replace each other's handlers."""
    for result in ("old", "new"):
        cell(ONE.format(edit="", result=result), file="<cell>")
    cell(ONE.format(edit="MOVED = True", result="newer"), file="<cell>")
    assert emit("placed") == ["newer"]


def test_statements_of_a_cell_that_are_compiled_singly_are_one_run(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements of a cell that IPython compiles one by one count as one run."""
    source, file = dedent(TWO.format(edit="", version="a")), "<ipython-input-1-abc>"
    monkeypatch.setitem(linecache.cache, file, (len(source), None, source.splitlines(keepends=True), file))
    second = source.rindex("@on")
    for _ in range(2):
        cell(source[:second], file=file)
        cell("\n" * source[:second].count("\n") + source[second:], file=file)
    assert emit("placed") == ["a first", "a second"]


def test_the_same_compiled_code_executed_again_replaces(default: Namespace) -> None:
    """Compiled code that is executed again, as some notebooks do, replaces its handlers in any namespace."""
    code = compile(dedent(TWO.format(edit="", version="x")), "/srv/app.py", "exec")
    shared: dict[str, Any] = {"__name__": "app", "on": on}
    for namespace in (shared, shared, {"__name__": "app", "on": on}):
        exec(code, namespace)
    assert emit("placed") == ["x first", "x second"]


def test_a_script_that_is_imported_by_name_too_is_heard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: Namespace
) -> None:
    """A script that runs as `__main__` and is imported too is heard once."""
    file = tmp_path / "script.py"
    file.write_text("from nitro import on\n\n@on('placed')\ndef h(order):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    main = ModuleType("__main__")
    main.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(file.read_text(), str(file), "exec"), main.__dict__)
    importlib.import_module("script")
    del sys.modules["script"]
    assert emit("placed") == [1]


def test_a_redefinition_stands_behind_what_is_connected_already(write: Write) -> None:
    """A redefined handler is connected last, as in blinker."""
    write(ONE.format(edit="", result="old"))
    on("placed")(lambda order: "other")
    write(ONE.format(edit="", result="new"))
    assert emit("placed") == ["other", "new"]


TOGETHER = {
    "loop": "for n in range(3):\n    @on('placed')\n    def h(order, n=n):\n        return n",
    "lambdas": "for n in range(3):\n    on('placed')(lambda order, n=n: n)",
    "one line": "on('placed')(lambda order: 0), on('placed')(lambda order: 1), on('placed')(lambda order: 2)",
    "comprehension": "[on('placed')(lambda order, n=n: n) for n in range(3)]",
    "factory": "def make(n):\n    @on('placed')\n    def h(order):\n        return n\nmake(0), make(1), make(2)",
    "decorator": "def listen(n):\n    def wrap(f):\n        @on('placed')\n"
    "        def h(order):\n            return n\n"
    "        return f\n    return wrap\n@listen(0)\n@listen(1)\n@listen(2)\ndef f(): ...",
    "instances": "class A:\n    def h(self, order):\n        return 1\nx, y, z = A(), A(), A()\n"
    "on('placed')(x.h), on('placed')(y.h), on('placed')(z.h)",
    "partials": "import functools\ndef f(n, order):\n    return n\n"
    "for n in range(3):\n    on('placed')(functools.partial(f, n))",
    "classes": "for n in range(3):\n    class A:\n        @on('placed')\n        @staticmethod\n"
    "        def h(order, n=n):\n            return n",
    "kept aside": "def h(order): ...\na = h\ndef h(order): ...\nb = h\ndef h(order): ...\n"
    "def setup():\n    for f in (a, b, h):\n        on('placed')(f)\nsetup()",
    "conditional": "if True:\n    @on('placed')\n    def h(order): ...\n    @on('placed')\n    def h(order): ...\n"
    "    @on('placed')\n    def h(order): ...",
}


@pytest.mark.parametrize("source", TOGETHER.values(), ids=TOGETHER)
def test_functions_that_one_run_connects_are_all_heard(write: Write, source: str) -> None:
    """Functions that one run connects are all heard, however alike, and as many after a reload."""
    for _ in range(3):
        write(source)
        assert len(event("placed").receivers) == 3


@pytest.mark.parametrize("source", TOGETHER.values(), ids=TOGETHER)
def test_functions_that_one_cell_connects_are_all_heard(cell: Cell, source: str) -> None:
    """Functions that one cell connects are all heard, however alike, and as many when it runs again."""
    for _ in range(3):
        cell(source)
        assert len(event("placed").receivers) == 3


def test_one_function_on_several_events_is_heard_on_each(write: Write) -> None:
    """A function on several events is heard on each, before and after a reload."""
    source = "@on('placed', priority=1)\n@on('paid')\n@on('*-sent', sender=str)\ndef h(order):\n    return 1"
    for _ in range(2):
        write(source)
        assert [emit(name, "o1") for name in ("placed", "paid", "mail-sent")] == [[1], [1], [1]]


def test_an_emission_under_way_keeps_the_definition_it_began_with(evt: Event) -> None:
    """A reload during an emission takes effect at the next emit."""
    namespace: dict[str, Any] = {"__name__": "live", "on": functools.partial(on, evt), "seen": (seen := [])}
    code = "@on()\ndef h(order):\n    seen.append({})"
    on(evt, priority=1)(lambda order: exec(code.format("'new'"), namespace))
    exec(code.format("'old'"), namespace)
    emit(evt)
    assert seen == ["old"]
    emit(evt)
    assert seen == ["old", "new"]
