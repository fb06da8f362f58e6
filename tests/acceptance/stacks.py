"""The stacks that every worker test runs on: a broker, a database, and a project between them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from kombu import Connection
from sqlalchemy import Engine, Row, create_engine, text
from sqlalchemy.pool import NullPool

from worker import ROOT, Project, Worker, end, until

POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432"
REDIS = "redis://127.0.0.1:6379/9"
RABBITMQ = "amqp://guest:guest@127.0.0.1:5672"
HANDLERS = "project.handlers,project.values,project.script,project.reactions,project.mortal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A broker and a database with a project on them.

    Attributes:
        project: the processes; its handlers are those of the folder `project`.
        observer: a Celery app that only looks: results, control commands.
        waiting: how many messages a queue holds.
        workers: those that were started so far, by name.
    """

    name: str
    database: str
    project: Project
    observer: Celery
    waiting: Callable[[str], int]
    workers: dict[str, Worker]

    def worker(self, name: str, *arguments: object) -> Worker:
        """The worker of that name, which consumes the queue of that name; started at the first call."""
        if name not in self.workers:
            self.workers[name] = self.project.worker(name, "-Q", name, *arguments)
        return self.workers[name]

    def emit(self, event: str, key: str, **options: object) -> dict[str, Any]:
        """The facts of an emission that a fresh process made."""
        facts: dict[str, Any] = json.loads(
            self.project.python("-m", "project.emitter", event, key, json.dumps(options))
        )
        return facts

    def effects(self, key: str) -> list[dict[str, Any]]:
        """Returns the effects that handlers recorded under a key, in their order."""
        file = Path(self.project.environ["ACCEPTANCE_EFFECTS"], key)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def effect(self, key: str, count: int = 1) -> list[dict[str, Any]]:
        """The effects under a key, as soon as there are so many."""
        return until(lambda: found if len(found := self.effects(key)) >= count else [])

    def result(self, task_id: str) -> AsyncResult[Any]:
        """The stored result of a task."""
        return self.observer.AsyncResult(task_id)

    def ended(self, task_id: str) -> str:
        """The final state of a task, as soon as it has one."""
        until(lambda: self.result(task_id).ready())
        return str(self.result(task_id).state)

    def rows(self, query: str, **values: object) -> list[Row[Any]]:
        """Returns the rows of a query on the stack's database."""
        with _engine(self.database).connect() as connection:
            return list(connection.execute(text(query), values))


def missing(server: str, address: str) -> NoReturn:
    """Skip because a server does not answer, or fail where that is not allowed."""
    say = pytest.fail if os.environ.get("NITRO_TEST_SERVERS") == "required" else pytest.skip
    say(f"MISSING SERVER: {server} does not answer at {address}")


def need(server: str, port: int) -> None:
    """Go on only if a server listens on that port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        missing(server, f"127.0.0.1:{port}")


@contextmanager
def embedded(home: Path) -> Iterator[Stack]:
    """No server at all: SQLite, and a broker in a folder."""
    queue, control = home / ".nitro/queue", home / ".nitro/control"
    options = {"data_folder_in": str(queue), "data_folder_out": str(queue), "control_folder": str(control)}
    database = f"sqlite:///{home / 'nitro.db'}"
    with _running(
        name="embedded",
        home=home,
        environ={"NITRO_DB_URL": database},
        observer=_observer("filesystem://", f"sqlite:///{home / '.nitro/results.db'}", options),
        waiting=lambda name: len(list(queue.glob(f"*.{name}.msg"))),
        database=database,
    ) as stack:
        yield stack


@contextmanager
def on_redis(home: Path) -> Iterator[Stack]:
    """Redis with a database number of its own, and PostgreSQL."""
    need("Redis", 6379)
    client = redis.Redis.from_url(REDIS)
    client.flushdb()
    try:
        with (
            _database() as database,
            _running(
                name="redis",
                home=home,
                environ={"NITRO_DB_URL": database, "NITRO_BROKER_URL": REDIS},
                observer=_observer(REDIS, database, {}),
                waiting=lambda name: int(client.llen(name)),  # type: ignore[arg-type]  # the client is not async
                database=database,
            ) as stack,
        ):
            yield stack
    finally:
        client.flushdb()
        client.close()


@contextmanager
def on_rabbitmq(home: Path) -> Iterator[Stack]:
    """RabbitMQ with a virtual host of its own, and PostgreSQL."""
    need("RabbitMQ", 5672)
    vhost = f"nitro_acceptance_{os.getpid()}"
    broker = f"{RABBITMQ}/{vhost}"

    def waiting(name: str) -> int:
        with Connection(broker) as connection:
            return int(connection.default_channel.queue_declare(name, passive=True).message_count)

    with (
        _vhost(vhost),
        _database() as database,
        _running(
            name="rabbitmq",
            home=home,
            environ={"NITRO_DB_URL": database, "NITRO_BROKER_URL": broker},
            observer=_observer(broker, database, {}),
            waiting=waiting,
            database=database,
        ) as stack,
    ):
        yield stack


STACKS = {"embedded": embedded, "redis": on_redis, "rabbitmq": on_rabbitmq}


@contextmanager
def _running(*, home: Path, environ: dict[str, str], **parts: Any) -> Iterator[Stack]:
    """A stack with its tables; its workers are ended with it."""
    effects = home / "effects"
    effects.mkdir(parents=True)
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    fixed = {
        "FLOWER_UNAUTHENTICATED_API": "1",
        "PYTHONPATH": paths,
        "NITRO_HOME": str(home / ".nitro"),
        "NITRO_HANDLERS": HANDLERS,
    }
    project = Project(
        folder=ROOT, app="tasks", environ={**fixed, **environ, "ACCEPTANCE_EFFECTS": str(effects)}, logs=home
    )
    stack = Stack(project=project, workers={}, **parts)
    project.python("-c", "from nitro.cli import nitro; nitro(['init', '--entities'])")
    try:
        yield stack
    finally:
        end(*(worker.process for worker in stack.workers.values()))
        stack.observer.close()


def _observer(broker: str, database: str, options: dict[str, str]) -> Celery:
    app = Celery("observer", broker=broker, backend=f"db+{database}", set_as_current=False)
    app.conf.broker_transport_options = options
    app.conf.database_engine_options = {"poolclass": None}
    return app


@cache
def _engine(database: str) -> Engine:
    """An engine that keeps no connection open."""
    return create_engine(database, poolclass=NullPool)


@contextmanager
def _database() -> Iterator[str]:
    """A PostgreSQL database of one's own, dropped at the end."""
    need("PostgreSQL", 5432)
    name = f"nitro_acceptance_{os.getpid()}"
    server = create_engine(f"{POSTGRESQL}/postgres", isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield f"{POSTGRESQL}/{name}"
    finally:
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        server.dispose()


@contextmanager
def _vhost(name: str) -> Iterator[None]:
    """A RabbitMQ virtual host of one's own, deleted at the end."""
    if shutil.which("rabbitmqctl") is None:
        missing("RabbitMQ", "rabbitmqctl, which makes a virtual host for the tests")
    _rabbitmqctl("add_vhost", name)
    try:
        _rabbitmqctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        yield
    finally:
        _rabbitmqctl("delete_vhost", name)


def _rabbitmqctl(*arguments: str) -> None:
    subprocess.run(["rabbitmqctl", "--quiet", *arguments], check=True, capture_output=True, timeout=60)
