"""Fixtures of the acceptance tests: stacks, their workers, and the workers' logs in the report of a failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from stacks import STACKS, Stack
from worker import Worker

SERVER = pytest.mark.server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.acceptance)


@pytest.fixture(
    scope="session",
    params=["embedded", pytest.param("redis", marks=SERVER), pytest.param("rabbitmq", marks=SERVER)],
)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Each stack in turn, made once a session."""
    with STACKS[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def worker(stack: Stack) -> Worker:
    """The prefork worker of the default queue."""
    return stack.worker("nitro", "-c", "2")


@pytest.fixture
def single(stack: Stack) -> Worker:
    """A prefork worker with one child, of a queue of its own."""
    return stack.worker("single", "-c", "1")


@pytest.fixture
def threads(stack: Stack) -> Worker:
    """A worker with eight threads, of a queue of its own."""
    return stack.worker("threads", "-P", "threads", "-c", "8")


@pytest.fixture
def key() -> str:
    """A name for the effects of one test."""
    return uuid4().hex


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the ends of the workers' logs to the report of a failure."""
    report = yield
    used = getattr(item, "funcargs", {})
    if report.failed and "stack" in used:
        own = [used["worker"]] if isinstance(used.get("worker"), Worker) else []
        workers = {worker.name: worker for worker in (*used["stack"].workers.values(), *own)}
        report.sections += [(f"log of worker {name}", worker.tail()) for name, worker in workers.items()]
    return report
