"""Fixtures of the tests of offloading: a Celery app in memory, its queued messages, and a worker in this process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from celery import Celery, _state
from celery.app.trace import reset_worker_optimizations
from celery.contrib.testing.worker import start_worker
from kombu.transport import memory
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import OperationalError

from nitro.infrastructure import database
from nitro.infrastructure.events import Emission, events
from nitro.infrastructure.offload import app as apps
from nitro.infrastructure.offload import bind, declarations
from nitro.infrastructure.offload.codec import Payload, decode
from nitro.infrastructure.offload.envelope import ENVELOPE_KEY
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox.relay import emitter_relay
from nitro.infrastructure.outbox.rows import payload_column
from nitro.infrastructure.outbox.schema import deliveries, emissions

IN_MEMORY = {
    "broker_url": "memory://",
    "result_backend": "cache+memory://",
    "broker_transport_options": {"polling_interval": 0.005},
    "worker_hijack_root_logger": False,
}
LOOK_AGAIN = 0.02
PATIENCE = 20.0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A task message in the broker."""

    name: str
    id: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    embed: dict[str, Any]

    @property
    def payload(self) -> Payload:
        """Payload of the handler, from the message or from its row."""
        text = self.kwargs[ENVELOPE_KEY]["payload"]
        if text is None:
            row = select(payload_column()).select_from(deliveries.join(emissions)).where(deliveries.c.id == self.id)
            with database.engine().connect() as connection:
                text = connection.scalar(row)
        return decode(text, load=lambda cls, key: (cls, key))


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
def offloading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Resets settings, connected events, declarations, current app and memory broker to those of a new process."""
    monkeypatch.setattr(events, "_ever_connected", WeakSet())
    for slot in (apps._bound_app, apps._own_app):
        monkeypatch.setattr(slot, "value", None)
    for name in [name for name in os.environ if name.startswith("NITRO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NITRO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NITRO_DB_URL", f"sqlite:///{tmp_path / 'nitro.db'}")
    database.reset()
    declared = dict(declarations.declarations_by_name)
    current, default = _state._tls.current_app, _state.default_app
    declarations.declarations_by_name.clear()
    _state._tls.current_app, _state.default_app = None, None
    memory.Channel.queues.clear()
    memory.Transport.global_state.clear()
    publisher._failures, publisher._has_waited = 0, False
    yield
    publisher.drain(PATIENCE)
    emitter_relay.stop(PATIENCE)
    emitter_relay._thread._reset()
    for app in (apps._bound_app.value, apps._own_app.value):
        if app is not None:
            app.close()
    memory.Channel.queues.clear()
    _state._tls.current_app, _state.default_app = current, default
    declarations.declarations_by_name.clear()
    declarations.declarations_by_name.update(declared)
    database.reset()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emit waits long for the broker's answer, so that a busy machine makes no relay publish its messages again."""
    module = sys.modules[type(publisher).__module__]
    for name in ("FIRST_ANSWER_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(module, name, PATIENCE)


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
        assert publisher.drain(PATIENCE)
        return list(taken(app, queue))

    return take


def taken(app: Celery, queue: str) -> Iterator[Sent]:
    """Yields the messages of a queue of any broker, and removes each."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            args, kwargs, embed = message.decode()
            yield Sent(
                name=message.headers["task"],
                id=message.headers["id"],
                headers=message.headers,
                properties=message.properties,
                args=args,
                kwargs=kwargs,
                embed=embed,
            )


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The results of a worker in this process."""

    app: Celery

    def of(self, task_id: str) -> Any:
        """Returns the result of a task when it has ended, or the exception that it raised."""
        return self.app.AsyncResult(task_id).get(timeout=PATIENCE, interval=LOOK_AGAIN, propagate=False)

    def only(self, emission: Emission) -> Any:
        """Returns the outcome of the only offloaded handler of an emission."""
        (task_id,) = emission.offloaded.values()
        return self.of(task_id)

    def state(self, emission: Emission) -> str:
        """Returns the final state of the only offloaded handler of an emission."""
        (task_id,) = emission.offloaded.values()
        self.of(task_id)
        return str(self.app.AsyncResult(task_id).state)


@contextmanager
def working(app: Celery, pool: str = "solo", concurrency: int = 1) -> Iterator[Outcomes]:
    """Runs a worker in a thread of this process, as long as the block lasts."""
    default = _state.default_app
    try:
        with start_worker(app, perform_ping_check=False, pool=pool, concurrency=concurrency, loglevel="WARNING"):
            yield Outcomes(app)
    finally:
        reset_worker_optimizations(app)
        _state.default_app = default


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
