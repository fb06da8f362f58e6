"""The commands of `celery … nitro`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

ROOT = Path(__file__).parents[2]
HANDLERS = """
from nitro import Entity

class Parcel(Entity, table=True):
    weight: int
"""


def nitro(*arguments: str, environ: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery", "-A", "tasks", "nitro", *arguments]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{cwd}", "NITRO_HOME": str(cwd / "home"), **environ}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a module of handlers that defines an entity."""
    (tmp_path / "parcels.py").write_text(HANDLERS)
    return tmp_path


def test_init_creates_the_tables_of_the_handlers_modules(project: Path) -> None:
    """`celery -A tasks nitro init` needs no worker to have run before."""
    url = f"sqlite:///{project / 'parcels.db'}"
    done = nitro("init", environ={"NITRO_HANDLERS": "parcels", "NITRO_DB_URL": url}, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "parcel" in inspect(create_engine(url)).get_table_names()
    assert url in done.stdout


def test_init_fails_when_the_database_is_away(project: Path) -> None:
    """It says so, and its exit code too."""
    url = "postgresql://postgres@127.0.0.1:9/away"
    done = nitro("init", environ={"NITRO_HANDLERS": "parcels", "NITRO_DB_URL": url}, cwd=project)
    assert done.returncode == 1
    assert "127.0.0.1" in done.stderr


def test_unknown_command_is_a_usage_error(project: Path) -> None:
    """As of any Celery command."""
    done = nitro("inti", environ={"NITRO_HANDLERS": "parcels"}, cwd=project)
    assert done.returncode == 2
    assert "inti" in done.stderr


def test_wrong_setting_is_an_error_at_start(project: Path) -> None:
    """It names the setting, the value and what is allowed."""
    done = nitro("init", environ={"NITRO_DELIVERY": "twice"}, cwd=project)
    assert done.returncode != 0
    assert "NITRO_DELIVERY='twice'" in done.stderr
    assert "at-least-once" in done.stderr
