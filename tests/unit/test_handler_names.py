"""Handler names: the same in the emitter and in the worker."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nitro.infrastructure.events.handler import default_name, importable_module, kind_of

SCRIPT = """
from nitro.infrastructure.events.handler import default_name

def mail(sender): ...

class Shop:
    def stock(self, sender): ...

if __name__ == "__main__":
    print(default_name(mail), default_name(Shop().stock))
"""
SPAWNING = """
import multiprocessing
from nitro.infrastructure.events.handler import default_name

def mail(sender): ...

def tell():
    print(default_name(mail), flush=True)

if __name__ == "__main__":
    tell()
    child = multiprocessing.get_context("spawn").Process(target=tell)
    child.start()
    child.join()
"""


class Service:
    def handle(self, sender: object) -> None: ...

    def __call__(self, sender: object) -> None: ...

    @staticmethod
    def static(sender: object) -> None: ...


def run(folder: Path, *arguments: str, stdin: str | None = None, **environ: str) -> list[str]:
    """Returns the words that a new interpreter prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(folder)])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": paths, **environ},
        capture_output=True,
        text=True,
        input=stdin,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def write(folder: Path, file: str, text: str = SCRIPT, *, package: bool = False) -> str:
    """Writes a file into the folder, in packages or not; returns its relative path."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    for parent in path.relative_to(folder).parents if package else ():
        if parent.name:
            (folder / parent / "__init__.py").touch()
    return file


def test_name_is_module_and_qualname() -> None:
    """The default name is the path that imports the function."""
    assert default_name(test_name_is_module_and_qualname) == f"{__name__}.test_name_is_module_and_qualname"
    assert default_name(Service().handle) == f"{__name__}.Service.handle"
    assert default_name(Service.static) == f"{__name__}.Service.static"


def test_name_of_an_instance_is_its_classs() -> None:
    """An object without a name is reported by its class."""
    assert default_name(Service()) == f"{__name__}.Service"


def test_name_of_a_partial_is_its_functions() -> None:
    """A partial has the name of its function."""
    assert default_name(functools.partial(functools.partial(Service.static))) == f"{__name__}.Service.static"


def test_name_of_a_builtin_method_has_a_module() -> None:
    """A handler such as `seen.append` has a module instead of `None` in its name."""
    assert "None" not in default_name([].append)


def test_other_modules_keep_their_name() -> None:
    """Only the running script has a second name."""
    assert importable_module("shop.handlers") == "shop.handlers"


def test_script_in_the_current_folder(tmp_path: Path) -> None:
    """A handler of `python shop.py` is named `shop.…`, so that a worker in the same folder imports it."""
    assert run(tmp_path, write(tmp_path, "shop.py")) == ["shop.mail", "shop.Shop.stock"]


def test_script_in_a_package(tmp_path: Path) -> None:
    """A handler of `python shop/handlers.py` is named by its package, from any current folder."""
    write(tmp_path, "shop/eu/handlers.py", package=True)
    assert run(tmp_path, "shop/eu/handlers.py")[0] == "shop.eu.handlers.mail"
    assert run(tmp_path / "shop/eu", "handlers.py")[0] == "shop.eu.handlers.mail"


def test_script_in_a_folder_without_init(tmp_path: Path) -> None:
    """A folder below the current one is a namespace package."""
    assert run(tmp_path, write(tmp_path, "shop/handlers.py"))[0] == "shop.handlers.mail"


def test_script_elsewhere(tmp_path: Path) -> None:
    """A script far from the current folder is a module of its own folder."""
    write(tmp_path, "far/shop.py")
    (tmp_path / "near").mkdir()
    assert run(tmp_path / "near", str(tmp_path / "far/shop.py"))[0] == "shop.mail"


def test_module_run_with_m(tmp_path: Path) -> None:
    """A handler of `python -m shop.handlers` has the name after `-m`."""
    write(tmp_path, "shop/handlers.py", package=True)
    assert run(tmp_path, "-m", "shop.handlers")[0] == "shop.handlers.mail"


def test_package_run_with_m(tmp_path: Path) -> None:
    """A handler of `python -m shop` is named after `shop.__main__`."""
    write(tmp_path, "shop/__main__.py", package=True)
    assert run(tmp_path, "-m", "shop")[0] == "shop.__main__.mail"


def test_script_listed_in_the_settings(tmp_path: Path) -> None:
    """A script that NITRO_HANDLERS lists is named as listed there."""
    write(tmp_path, "src/shop.py")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path / "src")])
    words = run(tmp_path, "src/shop.py", NITRO_HANDLERS="missing.module,shop", PYTHONPATH=paths)
    assert words[0] == "shop.mail"


def test_symbolic_link_is_the_file_it_leads_to(tmp_path: Path) -> None:
    """A link to a listed file is that file."""
    write(tmp_path, "shop.py")
    (tmp_path / "start").symlink_to(tmp_path / "shop.py")
    assert run(tmp_path, "start", NITRO_HANDLERS="shop")[0] == "shop.mail"


@pytest.mark.parametrize("arguments", [("-c", SCRIPT), ("-",)])
def test_source_without_a_file_stays_main(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A worker cannot import a script without a file; `name=` solves that."""
    assert run(tmp_path, *arguments, stdin=SCRIPT)[0] == "__main__.mail"


def test_spawned_child_uses_the_same_name(tmp_path: Path) -> None:
    """multiprocessing loads the script as `__mp_main__`; its handlers are the same ones."""
    assert run(tmp_path, write(tmp_path, "shop.py", SPAWNING)) == ["shop.mail", "shop.mail"]


async def coroutine(sender: object) -> None: ...


def generator(sender: object) -> Any:
    yield sender


async def async_generator(sender: object) -> Any:
    yield sender


class AsyncService:
    async def __call__(self, sender: object) -> None: ...

    async def handle(self, sender: object) -> None: ...

    @staticmethod
    async def static(sender: object) -> None: ...

    @classmethod
    async def made(cls, sender: object) -> None: ...


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (Service.static, "sync"),
        (Service(), "sync"),
        (print, "sync"),
        ([].append, "sync"),
        (Service, "sync"),
        (coroutine, "async"),
        (AsyncService(), "async"),
        (AsyncService().handle, "async"),
        (AsyncService.static, "async"),
        (AsyncService.made, "async"),
        (functools.partial(functools.partial(coroutine)), "async"),
        (functools.partial(AsyncService().handle), "async"),
        (functools.partial(AsyncService()), "async"),
        (generator, "generator"),
        (functools.partial(generator), "generator"),
        (async_generator, "async generator"),
        (functools.partial(async_generator), "async generator"),
    ],
)
def test_kind_is_found_behind_every_wrapping(function: Any, kind: str) -> None:
    """The kind of a partial, a method or a callable object is the kind of its function."""
    assert kind_of(function) == kind
