"""`celery -A app nitro …` knows the handlers that a worker of the app would: section 14."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

REPOSITORY = Path(__file__).parents[2]
HANDLERS = """
from nitro import on

@on("order.placed", offload=True)
def mail(sender): ...
"""
APP = "from celery import Celery\nfrom nitro.infrastructure.offload import bind\n"

Project = Callable[..., "Nitro"]
Nitro = Callable[..., subprocess.CompletedProcess[str]]

HOW = {
    "include": 'app = bind(Celery("shop", broker="memory://", include=["warehouse.mailing"]))',
    "imports": 'app = bind(Celery("shop", broker="memory://"))\napp.conf.imports = ("warehouse.mailing",)',
    "unbound": (
        'from nitro.infrastructure.events import on\napp = Celery("shop", broker="memory://", '
        'include=["warehouse.mailing"])'
    ),
    "autodiscover": (
        'app = bind(Celery("shop", broker="memory://"))\napp.autodiscover_tasks(["warehouse"], related_name="mailing")'
    ),
    "lazy packages": (
        'app = bind(Celery("shop", broker="memory://"))\n'
        'app.autodiscover_tasks(lambda: ["warehouse"], related_name="mailing")'
    ),
    "config": 'app = bind(Celery("shop"))\napp.config_from_object("config")',
    "factory": """
        def make():
            app = Celery("shop", broker="memory://")
            app.autodiscover_tasks(["warehouse"], related_name="mailing")
            return bind(app)

        app = make()
        """,
    "signal": """
        from celery.signals import import_modules

        app = bind(Celery("shop", broker="memory://"))

        @import_modules.connect(weak=False)
        def more(sender, **kwargs):
            import warehouse.mailing
        """,
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Writes files, and gives what runs `celery -A shop nitro …` beside them."""

    def write(shop: str, mailing: str = HANDLERS, **environ: str) -> Nitro:
        (tmp_path / "warehouse").mkdir()
        (tmp_path / "warehouse" / "__init__.py").touch()
        (tmp_path / "warehouse" / "mailing.py").write_text(mailing)
        (tmp_path / "config.py").write_text('broker_url = "memory://"\nimports = ["warehouse.mailing"]\n')
        (tmp_path / "shop.py").write_text(APP + dedent(shop))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
        kept["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(tmp_path)])

        def run(*arguments: str, of: str = "nitro") -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "celery", "-A", "shop", of, *arguments]
            return subprocess.run(
                command, cwd=tmp_path, env=kept | environ, capture_output=True, text=True, check=False, timeout=60
            )

        return run

    return write


@pytest.mark.parametrize("how", HOW)
def test_handlers_of_modules_that_the_app_imports_are_known(project: Project, how: str) -> None:
    """However the app says which modules these are."""
    listed = project(HOW[how])("handlers", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [(row["event"], row["handler"]) for row in json.loads(listed.stdout)] == [
        ("order.placed", "warehouse.mailing.mail")
    ]
    assert "no handler is declared" not in listed.stderr


@pytest.mark.parametrize("command", [("explain", "order.placed"), ("graph",), ("doctor",)])
def test_each_command_knows_them(project: Project, command: tuple[str, ...]) -> None:
    """What an emit would do, the picture, and whether a worker knows them."""
    done = project(HOW["include"])(*command)
    assert done.returncode == 0, done.stderr
    assert ("warehouse.mailing.mail" in done.stdout) or command == ("doctor",)
    assert "no handler is declared" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["handlers", "graph"])
def test_no_handler_at_all_is_a_warning(project: Project, command: str) -> None:
    """An empty list alone could mean that all is well."""
    done = project('app = bind(Celery("shop", broker="memory://"))')(command)
    assert done.returncode == 0
    assert "warning: no handler is declared" in done.stderr


BROKEN = {
    "missing": ("import no_such_library\n", "No module named 'no_such_library'"),
    "raises": ("\nraise RuntimeError('no licence')\n", "RuntimeError: no licence"),
    "syntax": ("def f(:\n", "SyntaxError"),
    "declaration": (
        "from nitro import on\ndef mail(sender): ...\non('order.placed', offload={'queu': 'a'})(mail)\n",
        "did you mean 'queue'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("how", ["include", "autodiscover"])
def test_a_module_that_cannot_be_imported_is_named(project: Project, kind: str, how: str) -> None:
    """In one line, with the error."""
    source, error = BROKEN[kind]
    done = project(HOW[how], source)("handlers")
    assert done.returncode == 1
    assert error in done.stderr
    assert "mailing.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_that_is_not_there_is_named(project: Project) -> None:
    """By the name that was given."""
    done = project('app = bind(Celery("shop", broker="memory://", include=["warehouse.mailings"]))')("handlers")
    assert done.returncode == 1
    assert "warehouse.mailings" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_finds_a_module_that_cannot_be_imported(project: Project) -> None:
    """And checks all else."""
    done = project(HOW["include"], "raise RuntimeError('no licence')\n")("doctor", "--json")
    assert done.returncode == 1
    found = {each["check"]: each for each in json.loads(done.stdout)}
    assert found["handlers"]["verdict"] == "wrong"
    assert "no licence" in found["handlers"]["found"]
    assert found["database"]["verdict"] == "fine"


@pytest.mark.parametrize("command", [("tail", "--once"), ("outbox", "list")])
def test_what_is_recorded_is_told_although_a_module_cannot_be_imported(
    project: Project, command: tuple[str, ...]
) -> None:
    """Whoever is on call sees it, with a warning."""
    done = project(HOW["include"], "raise RuntimeError('no licence')\n")(*command)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_can_be_asked_before_its_handlers_are_loaded_here(project: Project) -> None:
    """`celery inspect` knows the question, although this process imports no module of handlers."""
    done = project('app = Celery("shop", broker="memory://", include=["warehouse.mailing"])')(
        "nitro_outbox", of="inspect"
    )
    assert "No nodes replied" in done.stderr + done.stdout
