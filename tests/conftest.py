"""Fixtures of the tests of offloading: a Celery app in memory, its queued messages, and a worker in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.transport import memory
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from nitro.infrastructure.events import Event, Namespace
from nitro.infrastructure.offload import bind
from support.app import IN_MEMORY, Outcomes, new_process, working
from support.broker import Sent, drain_publisher, record_batch_sizes, taken, wait_long_for_answers
from support.databases import KINDS, on_database

LOOK_AGAIN = 0.02
SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Have `-n auto` be right for tests that wait."""
    from parallel import processes

    return processes()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have `-n` keep groups of tests together."""
    from parallel import Scheduler

    return Scheduler(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have `-n` begin with the groups that take longest."""
    if hasattr(config, "workerinput"):
        from parallel import rank

        items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[Any]:
    """Have `-n` cope with any text that a test has written."""
    report = yield
    from parallel import sendable

    return sendable(report)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """The root logger has its level again when a test ends, whatever level its workers were given."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def database_server() -> Iterator[str]:
    """URL of an empty PostgreSQL database, dropped at the end; skips the test with a message if no server answers."""
    name = f"nitro_unit_{os.getpid()}"
    server = create_engine(f"{SERVER}/postgres", isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    try:
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        if os.environ.get("NITRO_TEST_SERVERS") == "required":
            raise
        pytest.skip(f"MISSING SERVER: PostgreSQL does not answer at {SERVER}: {error}")
    yield f"{SERVER}/{name}"
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def evt() -> Event:
    """An event in a namespace of its own."""
    return Namespace().event("order.placed")


@pytest.fixture
def offloading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Resets settings, connected events, declarations, current app and memory broker to those of a new process."""
    with new_process(monkeypatch, tmp_path):
        yield


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emits that wait for the broker's answer as long as a test does."""
    wait_long_for_answers(monkeypatch)


@pytest.fixture
def make_app(offloading: None) -> Iterator[Callable[..., Celery]]:
    """Makes Celery apps with a broker and results in memory; keywords are further settings."""
    apps_of_test: list[Celery] = []

    def make(*, task_cls: Any = None, **conf: Any) -> Celery:
        app = Celery("shop", set_as_current=False, task_cls=task_cls)
        app.config_from_object({**IN_MEMORY, **conf})
        apps_of_test.append(app)
        return app

    yield make
    for app in apps_of_test:
        app.close()


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    """A bound app with a broker and results in memory."""
    return bind(make_app())


@pytest.fixture
def sent(app: Celery) -> Callable[..., list[Sent]]:
    """Takes all messages out of a queue of the memory broker, after all emissions were published."""

    def take(queue: str = "celery") -> list[Sent]:
        drain_publisher()
        return list(taken(app, queue))

    return take


@pytest.fixture(params=KINDS)
def database_kind(request: pytest.FixtureRequest, offloading: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the kind of database that stores emissions and deliveries: each kind in turn."""
    on_database(request, monkeypatch, request.param)
    return str(request.param)


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of messages in each published batch, in order."""
    return record_batch_sizes(monkeypatch)


@pytest.fixture
def work_for_a_while(quick_memory: None) -> Callable[..., Any]:
    """Starts a worker in this process until the end of a block: `with work_for_a_while(app) as outcomes:`."""
    return working


@pytest.fixture
def work(quick_memory: None) -> Iterator[Callable[..., Outcomes]]:
    """Starts a worker in this process, for an app and the handlers declared so far; it ends with the test."""
    with ExitStack() as workers:
        yield lambda app, **options: workers.enter_context(working(app, **options))


@pytest.fixture
def quick_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the memory broker poll for messages more often than once a second."""
    drain = memory.Transport.drain_events

    def drain_quickly(transport: Any, connection: Any, timeout: float | None = None) -> None:
        drain(transport, connection, timeout=LOOK_AGAIN)

    monkeypatch.setattr(memory.Transport, "drain_events", drain_quickly)
