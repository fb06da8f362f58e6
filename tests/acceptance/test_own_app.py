"""Offloaded handlers use the Celery app of a project, with `bind(app)` and without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from stacks import Stack
from worker import ROOT, Project, end, until

APP = """
    import os

    from celery import Celery
    from nitro.infrastructure.offload import bind

    app = Celery("proj", broker=os.environ["BROKER"], include=["shop"])
    app.conf.broker_transport_options = {options}
    app.conf.task_routes = {{"shop.*": "shop", "proj.*": "own"}}
    {bind}


    @app.task
    def plain(number):
        with open("plain.txt", "a") as file:
            file.write(f"{{os.getpid()}} {{number}}")
"""
SHOP = """
    import os

    from nitro import on


    @on("order.placed", offload=True)
    def confirm(sender, **kwargs):
        with open("confirmed.txt", "a") as file:
            file.write(f"{os.getpid()} {sender} {kwargs}")
"""
EMIT = """
    import os

    import proj
    import shop
    from nitro import emit

    print(os.getpid(), *emit("order.placed", "ada", total=5).offloaded)
"""


@pytest.fixture(params=["bind(app)", ""], ids=["bound", "not bound"])
def project(request: pytest.FixtureRequest, stack: Stack, tmp_path: Path) -> Iterator[Project]:
    """A project in its own folder with a running worker and two queues on the stack's broker."""
    (tmp_path / "queue").mkdir()
    folders = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
    options = folders if stack.name == "embedded" else {}
    for name, source in {
        "proj": APP.format(options=options, bind=request.param),
        "shop": SHOP,
        "place": EMIT,
    }.items():
        (tmp_path / f"{name}.py").write_text(dedent(source))
    database = {} if stack.name == "embedded" else {"NITRO_DB_URL": stack.database}
    environ = {
        **database,
        "BROKER": stack.project.environ.get("NITRO_BROKER_URL", "filesystem://"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
    }
    own = Project(folder=tmp_path, app="proj", environ=environ, logs=tmp_path)
    worker = own.worker("own", "-c", "1", "-Q", "shop,own")
    yield own
    end(worker.process, within=0)


def test_handlers_run_in_a_worker_of_the_own_app(project: Project) -> None:
    """The handler runs in `celery -A proj worker`, through the queue of the app's routes."""
    pid, handler = project.python("place.py").split()
    assert handler == "shop.confirm"
    text = until(lambda: effect.read_text() if (effect := project.folder / "confirmed.txt").exists() else "")
    worker_pid, sender, rest = text.split(maxsplit=2)
    assert (sender, rest) == ("ada", "{'total': 5}")
    assert worker_pid != pid


def test_the_apps_own_tasks_still_run(project: Project) -> None:
    """A plain Celery task beside the handlers runs as before."""
    project.python("-c", "import proj; proj.plain.delay(7)")
    text = until(lambda: effect.read_text() if (effect := project.folder / "plain.txt").exists() else "")
    assert text.endswith(" 7")
