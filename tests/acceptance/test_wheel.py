"""The wheel contains only `nitro`, and a project runs on the installed wheel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from zipfile import ZipFile

import pytest

from worker import ROOT, Project, end, until

APP = """
    import os

    from celery import Celery
    from nitro import on
    from nitro.infrastructure.offload import bind

    app = bind(Celery("proj"))


    @on("order.placed", offload=True)
    def confirm(sender, **kwargs):
        import nitro

        with open("confirmed.txt", "a") as file:
            file.write(f"{os.getpid()} {nitro.__file__}")
"""


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in an empty folder, without the repository on its path."""
    folder = tmp_path_factory.mktemp("wheel")
    return Project(folder=folder, app="proj", environ={"PYTHONPATH": ""}, logs=folder)


@pytest.fixture(scope="module")
def wheel(builder: Project) -> Path:
    """The wheel, built from the repository."""
    builder.python("-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "-w", builder.folder)
    [built] = builder.folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, builder: Project) -> Iterator[Project]:
    """A project beside the installed wheel, with a worker on the embedded stack."""
    site = builder.folder / "site"
    builder.python("-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    (builder.folder / "proj.py").write_text(dedent(APP))
    environ = {"PYTHONPATH": str(site), "NITRO_HOME": str(builder.folder / ".nitro")}
    project = Project(folder=builder.folder, app="proj", environ=environ, logs=builder.folder)
    worker = project.worker("installed", "-c", "1")
    yield project
    end(worker.process, within=0)


def test_the_wheel_contains_only_nitro(wheel: Path) -> None:
    """The wheel contains the typed package with its plug-ins and dispatcher, and no `tasks`, tests or examples."""
    files = ZipFile(wheel).namelist()
    metadata = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    assert {file.partition("/")[0] for file in files} == {"nitro", metadata}
    assert "nitro/py.typed" in files
    entry_points = ZipFile(wheel).read(f"{metadata}/entry_points.txt").decode()
    assert [line for line in entry_points.splitlines() if line] == [
        "[alembic.plugins]",
        "alembic.autogenerate.nitro = nitro.alembic",
        "[celery.commands]",
        "nitro = nitro.cli:nitro",
        "[nitro.dispatchers]",
        "celery = nitro.bootstrap:wire",
    ]


def test_a_project_runs_on_the_installed_wheel(installed: Project) -> None:
    """The handler runs in another process, with the installed package."""
    emitting = "import os, proj; from nitro import emit; emit('order.placed', 'ada'); print(os.getpid())"
    pid = installed.python("-c", emitting).strip()
    effect = installed.folder / "confirmed.txt"
    by, package = until(lambda: effect.read_text() if effect.exists() else "").split()
    assert by != pid
    assert Path(package).is_relative_to(installed.folder / "site")


def test_the_celery_command_has_the_plug_in(installed: Project) -> None:
    """`celery -A proj nitro init` creates the tables of the project, in a database that its worker does not use."""
    database = installed.folder / "initial.db"
    project = replace(installed, environ={**installed.environ, "NITRO_DB_URL": f"sqlite:///{database}"})
    assert not database.exists()
    assert "tables are there" in project.celery("nitro", "init")
    assert database.exists()
