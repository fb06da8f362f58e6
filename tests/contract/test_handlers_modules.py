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
CELERY = Path(sys.executable).parent / "celery"  # which does not look into the working directory, unlike `python -m`

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
    """Runs `celery` in a folder with these modules and this value of the setting."""

    def start(handlers: str, *arguments: str, **modules: str) -> subprocess.CompletedProcess[str]:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(dedent(text))
        given = {name: value for name, value in os.environ.items() if not name.startswith(("NITRO_", "PYTHONPATH"))}
        environ = {**given, "NITRO_HANDLERS": handlers, "PYTHONPATH": str(ROOT)}
        command = [str(CELERY), "-A", "tasks", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    return start


@pytest.mark.parametrize("app", [BOUND, UNBOUND], ids=["bound", "without a line"])
def test_a_worker_imports_a_module_beside_its_app(run: Run, app: str) -> None:
    """One that imports the app's module itself, from the working directory, as Celery's `imports` may."""
    done = run("shop", "worker", "-P", "solo", tasks=app, shop=SHOP)
    assert "knows shop.confirm tasks.plain" in done.stderr


def test_a_worker_imports_a_module_that_the_app_imports_too(run: Run) -> None:
    """Then it is there already."""
    done = run("shop", "worker", "-P", "solo", tasks=f"{BOUND}\n    import shop", shop=SHOP)
    assert "knows shop.confirm tasks.plain" in done.stderr


def test_commands_import_it_too(run: Run) -> None:
    """They say what a worker would run."""
    assert "shop.confirm" in run("shop", "nitro", "handlers", tasks=BOUND, shop=SHOP).stdout


@pytest.mark.parametrize("handlers", ["include", "imports"])
def test_commands_import_what_the_app_imports(run: Run, handlers: str) -> None:
    """Handlers of an app need no setting of Nitro's."""
    app = f"{BOUND}\n    app.conf.{handlers} = ['shop']"
    assert "shop.confirm" in run("", "nitro", "handlers", tasks=app, shop=SHOP).stdout


FAILING = {
    "not there": ("nope", "", "ModuleNotFoundError: No module named 'nope'"),
    "imports nothing": ("broken", "import os\nimport nosuch", "broken.py, line 2"),
    "raises": ("broken", "raise RuntimeError('no\\nkey')", "RuntimeError: no key"),
    "syntax": ("broken", "def f(:", "SyntaxError"),
}


@pytest.mark.parametrize(("module", "text", "says"), FAILING.values(), ids=FAILING)
def test_a_module_that_cannot_be_imported_is_one_line(run: Run, module: str, text: str, says: str) -> None:
    """It names the setting, the module, the error and its place."""
    assert_is_told(run(module, "worker", "-P", "solo", tasks=BOUND, broken=text), module, says)


def test_a_command_says_so_too(run: Run) -> None:
    """In the same line."""
    assert_is_told(run("nope", "nitro", "handlers", tasks=BOUND), "nope", "ModuleNotFoundError")


@pytest.mark.parametrize("command", [("worker", "-P", "solo"), ("nitro", "handlers")], ids=["worker", "command"])
def test_a_file_in_place_of_a_module_is_one_line(run: Run, command: tuple[str, ...]) -> None:
    """It says what is allowed, of an app that does not import the library by itself."""
    done = run("shop/handlers.py", *command, tasks=UNBOUND)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "NITRO_HANDLERS='shop/handlers.py' is not allowed; give comma-separated module names" in line


def assert_is_told(done: subprocess.CompletedProcess[str], module: str, says: str) -> None:
    """It failed, and that line is all that it said."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    told = line.removeprefix("Error: ")  # of a command
    assert told.startswith(f"NITRO_HANDLERS names the module {module!r}, which cannot be imported: ")
    assert says in line
