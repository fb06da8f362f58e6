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

CONFIGURATIONS = {
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
    """A function that writes a project and returns a function that runs `celery -A shop nitro …` in it."""

    def write(shop: str, mailing: str = HANDLERS, **environ: str) -> Nitro:
        (tmp_path / "warehouse").mkdir()
        (tmp_path / "warehouse" / "__init__.py").touch()
        (tmp_path / "warehouse" / "mailing.py").write_text(mailing)
        (tmp_path / "config.py").write_text('broker_url = "memory://"\nimports = ["warehouse.mailing"]\n')
        (tmp_path / "shop.py").write_text(APP + dedent(shop))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(tmp_path)])

        def run(*arguments: str, subcommand: str = "nitro") -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "celery", "-A", "shop", subcommand, *arguments]
            return subprocess.run(
                command,
                cwd=tmp_path,
                env=environment | environ,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )

        return run

    return write


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_handlers_of_modules_that_the_app_imports_are_known(project: Project, configuration: str) -> None:
    """Commands know the handlers, in whichever setting the app names its modules."""
    process = project(CONFIGURATIONS[configuration])("handlers", "--json")
    assert process.returncode == 0, process.stderr
    assert [(row["event"], row["handler"]) for row in json.loads(process.stdout)] == [
        ("order.placed", "warehouse.mailing.mail")
    ]
    assert "no handler is declared" not in process.stderr


@pytest.mark.parametrize("command", [("explain", "order.placed"), ("graph",), ("doctor",)])
def test_each_command_knows_them(project: Project, command: tuple[str, ...]) -> None:
    """`explain` and `graph` show the handler, and `doctor` finds it."""
    process = project(CONFIGURATIONS["include"])(*command)
    assert process.returncode == 0, process.stderr
    assert ("warehouse.mailing.mail" in process.stdout) or command == ("doctor",)
    assert "no handler is declared" not in process.stdout + process.stderr


@pytest.mark.parametrize("command", ["handlers", "graph"])
def test_no_handler_at_all_is_a_warning(project: Project, command: str) -> None:
    """An app without a handler is a warning, because an empty list could be taken for a correct one."""
    process = project('app = bind(Celery("shop", broker="memory://"))')(command)
    assert process.returncode == 0
    assert "warning: no handler is declared" in process.stderr


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
@pytest.mark.parametrize("configuration", ["include", "autodiscover"])
def test_a_module_that_cannot_be_imported_is_named(project: Project, kind: str, configuration: str) -> None:
    """A module that cannot be imported is named with its error, without a traceback."""
    source, error = BROKEN[kind]
    process = project(CONFIGURATIONS[configuration], source)("handlers")
    assert process.returncode == 1
    assert error in process.stderr
    assert "mailing.py" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_module_that_is_not_there_is_named(project: Project) -> None:
    """A module that does not exist is named as the app names it."""
    process = project('app = bind(Celery("shop", broker="memory://", include=["warehouse.mailings"]))')("handlers")
    assert process.returncode == 1
    assert "warehouse.mailings" in process.stderr
    assert "Traceback" not in process.stderr


def test_doctor_finds_a_module_that_cannot_be_imported(project: Project) -> None:
    """`doctor` reports the module that cannot be imported, and makes all other checks."""
    process = project(CONFIGURATIONS["include"], "raise RuntimeError('no licence')\n")("doctor", "--json")
    assert process.returncode == 1
    checks = {check["check"]: check for check in json.loads(process.stdout)}
    assert checks["handlers"]["verdict"] == "wrong"
    assert "no licence" in checks["handlers"]["found"]
    assert checks["database"]["verdict"] == "fine"


@pytest.mark.parametrize("command", [("tail", "--once"), ("outbox", "list")])
def test_what_is_recorded_is_told_although_a_module_cannot_be_imported(
    project: Project, command: tuple[str, ...]
) -> None:
    """Commands that show recorded emissions and deliveries succeed with a module that cannot be imported."""
    process = project(CONFIGURATIONS["include"], "raise RuntimeError('no licence')\n")(*command)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr


def test_a_worker_can_be_asked_before_its_handlers_are_loaded_here(project: Project) -> None:
    """`celery inspect nitro_outbox` exists in a process that imports no module of handlers."""
    process = project('app = Celery("shop", broker="memory://", include=["warehouse.mailing"])')(
        "nitro_outbox", subcommand="inspect"
    )
    assert "No nodes replied" in process.stderr + process.stdout
