"""`NITRO_HANDLERS`: modules that a worker and the commands import: contract sections 10 and 14."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
CELERY = Path(sys.executable).parent / "celery"  # unlike `python -m`, it does not import from the working directory

BOUND = """
    from celery import Celery
    from nitro.infrastructure.offload import bind

    app = bind(Celery("tasks", broker="memory://"))

    @app.task
    def plain(): ...
"""
UNBOUND = """
    from celery import Celery

    app = Celery("tasks", broker="memory://")

    @app.task
    def plain(): ...
"""
SHOP = """
    from celery.signals import worker_ready
    from celery.worker import state
    from nitro import on
    from tasks import app, plain

    @on("order.placed", offload=True)
    def confirm(sender): ...

    @worker_ready.connect
    def stop(sender, **_):
        print(" ".join(["knows", *sorted(name for name in app.tasks if not name.startswith("celery."))]))
        state.should_stop = 0
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A function that runs `celery` in a folder with these modules and this value of NITRO_HANDLERS."""

    def start(handlers: str, *arguments: str, **modules: str) -> subprocess.CompletedProcess[str]:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(dedent(text))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NITRO_", "PYTHONPATH"))}
        environ = {**inherited, "NITRO_HANDLERS": handlers, "PYTHONPATH": str(ROOT)}
        command = [str(CELERY), "-A", "tasks", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    return start


@pytest.mark.parametrize("app", [BOUND, UNBOUND], ids=["bound", "without a line"])
def test_a_worker_imports_a_module_beside_its_app(run: Run, app: str) -> None:
    """A worker imports a module of the working directory that itself imports the app's module."""
    process = run("shop", "worker", "-P", "solo", tasks=app, shop=SHOP)
    assert "knows shop.confirm tasks.plain" in process.stderr


def test_a_worker_imports_a_module_that_the_app_imports_too(run: Run) -> None:
    """A worker starts with a module that the app has imported already."""
    process = run("shop", "worker", "-P", "solo", tasks=f"{BOUND}\n    import shop", shop=SHOP)
    assert "knows shop.confirm tasks.plain" in process.stderr


def test_commands_import_it_too(run: Run) -> None:
    """Commands list the handlers that a worker would run."""
    assert "shop.confirm" in run("shop", "nitro", "handlers", tasks=BOUND, shop=SHOP).stdout


@pytest.mark.parametrize("handlers", ["include", "imports"])
def test_commands_import_what_the_app_imports(run: Run, handlers: str) -> None:
    """Commands import the modules of the app's `include` and `imports` without a setting of Nitro's."""
    app = f"{BOUND}\n    app.conf.{handlers} = ['shop']"
    assert "shop.confirm" in run("", "nitro", "handlers", tasks=app, shop=SHOP).stdout


FAILING = {
    "not there": ("nope", "", "ModuleNotFoundError: No module named 'nope'"),
    "imports nothing": ("broken", "import os\nimport nosuch", "broken.py, line 2"),
    "raises": ("broken", "raise RuntimeError('no\\nkey')", "RuntimeError: no key"),
    "syntax": ("broken", "def f(:", "SyntaxError"),
}


@pytest.mark.parametrize(("module", "text", "reason"), FAILING.values(), ids=FAILING)
def test_a_module_that_cannot_be_imported_is_one_line(run: Run, module: str, text: str, reason: str) -> None:
    """The error of a worker is one line with the setting, the module, the error and its place."""
    assert_names_module(run(module, "worker", "-P", "solo", tasks=BOUND, broken=text), module, reason)


def test_a_command_says_so_too(run: Run) -> None:
    """The error of a command is the same line."""
    assert_names_module(run("nope", "nitro", "handlers", tasks=BOUND), "nope", "ModuleNotFoundError")


@pytest.mark.parametrize("command", [("worker", "-P", "solo"), ("nitro", "handlers")], ids=["worker", "command"])
def test_a_file_in_place_of_a_module_is_one_line(run: Run, command: tuple[str, ...]) -> None:
    """The error says that module names are allowed, also for an app that does not import Nitro."""
    process = run("shop/handlers.py", *command, tasks=UNBOUND)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "NITRO_HANDLERS='shop/handlers.py' is not allowed; give comma-separated module names" in line


def assert_names_module(process: subprocess.CompletedProcess[str], module: str, reason: str) -> None:
    """Asserts that the process failed, and that its only line names the module."""
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    message = line.removeprefix("Error: ")  # Click's prefix
    assert message.startswith(f"NITRO_HANDLERS names the module {module!r}, which cannot be imported: ")
    assert reason in line
