"""Private names of other libraries: each exists in the installed version, and is listed in private-api.md."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {str(path.relative_to(ROOT / "nitro")): path for path in sorted((ROOT / "nitro").rglob("*.py"))}
ROW = re.compile(r"^\| `([\w.]+)` \| (.+?) \| (.+) \|$", re.MULTILINE)
TABLE: dict[str, list[str]] = {
    name: re.findall(r"`([\w./]+)`", files)
    for name, files, _ in ROW.findall((ROOT / "docs/explanation/private-api.md").read_text(encoding="utf-8"))
}
PLACES = [(file, name) for name, files in TABLE.items() for file in files]

DOCUMENTED = {"_exit", "_make"}
"""Public names of `os` and of named tuples that begin with an underscore."""
MACHINERY = {"_abc_impl", "_compiler_dispatch", "_is_protocol", "_is_runtime_protocol"}
"""Private attributes that `abc`, SQLAlchemy's `compiles` and `typing` put into classes."""


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None and not name.endswith("_") and name not in DOCUMENTED


def names_of(tree: ast.AST) -> Iterator[str]:
    """Yields the names that code defines: functions, classes, variables, parameters, own attributes, slots."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=slots):
                yield from (part.value for part in ast.walk(slots) if isinstance(part, ast.Constant))


def uses_of(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yields the names that code takes from objects, and whether from `self`; whole strings count, as for `getattr`."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="_state"), attr=name):  # a module that is private itself
                yield f"_state.{name}", False
            case ast.Attribute(value=value, attr=name):
                yield name, isinstance(value, ast.Name) and value.id in ("self", "cls")
            case ast.ImportFrom(module=str(module), names=names):
                yield from ((f"{module}.{alias.name}".partition(".")[2], False) for alias in names)
            case ast.Constant(value=str(text)) if id(node) not in parts and not text.isupper():
                yield text, False
            case ast.keyword(arg=str(name)):
                yield name, False


def foreign_names(file: str) -> set[str]:
    """Returns the private names that a file uses and does not define."""
    tree = ast.parse(SOURCES[file].read_text())
    own, found = set(names_of(tree)), set[str]()
    for name, of_self in uses_of(tree):
        private = [part for part in name.split(".") if is_private(part)]
        if private and not (name in own or (of_self and name in OURS)):
            found.add(name)
    return found - {"_state"}  # `from celery import _state` is listed by the names taken from it


OURS = {name for path in SOURCES.values() for name in names_of(ast.parse(path.read_text()))}


def resolved(name: str) -> tuple[Any, str]:
    """Returns the module or class of a dotted name, and the name's last part."""
    *path, last = name.split(".")
    for length in range(len(path), 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(path[:length]))
        except ModuleNotFoundError:
            continue
        for part in path[length:]:
            owner = getattr(owner, part)
        return owner, last
    raise AssertionError(f"nothing of {name} can be imported")


def has(owner: Any, name: str) -> bool:
    """Returns whether the name is an attribute, or is named by the code of the classes or module."""
    if hasattr(owner, name) or isinstance(owner, ModuleType):
        return hasattr(owner, name)
    places = [sys.modules[owner.__module__], *inspect.getmro(owner)]
    functions = [value for place in places for value in vars(place).values() if inspect.isfunction(value)]
    return any(name in (*code.co_names, *code.co_consts) for code in (function.__code__ for function in functions))


@pytest.mark.parametrize("name", TABLE)
def test_a_listed_name_is_in_the_installed_version(name: str) -> None:
    """A listed name exists in the installed version of its library."""
    assert has(*resolved(name))


def test_a_name_that_is_gone_is_noticed() -> None:
    """A missing module, class or attribute is noticed."""
    assert not has(*resolved("celery._state._gone"))
    assert not has(*resolved("celery.app.base.Celery._gone"))
    assert not has(*resolved("redis.connection.Connection._gone"))


@pytest.mark.parametrize("file", SOURCES)
def test_a_file_uses_the_private_names_that_are_listed_for_it(file: str) -> None:
    """Private names of foreign objects are used with a row in the table only."""
    listed = {name for name, files in TABLE.items() if file in files}
    unlisted = {used for used in foreign_names(file) if not any(f".{name}".endswith(f".{used}") for name in listed)}
    assert not unlisted


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_a_listed_name_is_used(file: str, name: str) -> None:
    """A listed name is used by its files."""
    tree = ast.parse(SOURCES[file].read_text())
    used = {*(used for used, _ in uses_of(tree)), *names_of(tree)}
    assert any(f".{name}".endswith(f".{found}") for found in used)


@pytest.mark.parametrize("file", SOURCES)
def test_a_class_overrides_the_private_names_that_are_listed_for_its_file(file: str) -> None:
    """A private method of a class that shares its name with one of a foreign base is listed too."""
    path = SOURCES[file].relative_to(ROOT).with_suffix("")
    module = importlib.import_module(".".join(path.parts).removesuffix(".__init__"))
    listed = {name.rpartition(".")[2] for name, files in TABLE.items() if file in files}
    for cls in vars(module).values():
        if inspect.isclass(cls) and cls.__module__ == module.__name__:
            foreign = [base for base in cls.__mro__[1:] if not base.__module__.startswith("nitro.")]
            own = {name for name in vars(cls) if is_private(name)} - MACHINERY - listed
            assert not {name for name in own for base in foreign if name in vars(base)}, cls
