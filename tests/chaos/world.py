"""The world of a scenario: a broker, a database, the project's processes, and the ledger that judges them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from sqlalchemy import create_engine, event
from sqlalchemy.pool import NullPool

from tests.chaos.ledger import Ledger
from tests.chaos.outcome import Outcome
from tests.chaos.processes import NotInTime, Process, environment, python, start, tail, until
from tests.chaos.servers import Broker, PostgreSQL, RabbitMQ, Redis, Servers

QUEUE = "nitro"
STACKS = ("embedded", "redis", "rabbitmq")
PATIENCE = 60.0
"""Seconds within which processes start and end."""


class Messages(Protocol):
    """The queues of a broker, as a fault uses them."""

    def size(self, queue: str) -> int:
        """Returns the number of ready messages."""

    def empty(self, queue: str) -> None:
        """Deletes all messages of the queue."""

    def delete(self, queue: str) -> None:
        """Deletes the queue."""


@dataclass(slots=True)
class Folder:
    """The queues of the embedded broker, which are files."""

    path: Path

    def size(self, queue: str) -> int:
        """Returns the number of ready messages."""
        return len(list(self.path.glob(f"*.{queue}.msg")))

    def empty(self, queue: str) -> None:
        """Deletes the files."""
        for file in self.path.glob(f"*.{queue}.msg"):
            file.unlink(missing_ok=True)

    delete = empty


@dataclass(slots=True, kw_only=True)
class World:
    """The processes and servers of a scenario.

    Attributes:
        stack: the name of the stack.
        haste: whether the library's long waits are short.
        server: the broker, if it is a server.
    """

    stack: str
    folder: Path
    haste: bool
    environ: dict[str, str]
    messages: Messages
    server: Broker | None
    database: PostgreSQL | None
    ledger: Ledger
    _workers: int = 0
    processes: list[Process] = field(default_factory=list)

    def start(self, name: str, *arguments: object, environ: Mapping[str, str] | None = None) -> Process:
        """Starts `python -m` with these arguments."""
        process = start(name, python(*arguments), environment({**self.environ, **(environ or {})}), self.folder)
        self.processes.append(process)
        return process

    def run(self, name: str, *arguments: object, within: float = PATIENCE) -> str:
        """Runs `python -m` with these arguments to its successful end, and returns its output."""
        process = self.start(name, *arguments)
        code = process.ended(within)
        assert code == 0, f"{arguments} ended with {code}:\n{tail(process.text)}"
        return process.text

    def worker(self, *arguments: object, environ: Mapping[str, str] | None = None) -> Process:
        """Starts a worker under a new name, without waiting until it is ready."""
        self._workers += 1
        name = f"worker{self._workers}"
        node = ("worker", "-n", f"{name}@chaos", "-l", "INFO", "-Q", QUEUE, *arguments)
        return self.start(name, "celery", "-A", "tasks", *node, environ=environ)

    def emitter(self, name: str = "emitter", **options: object) -> Process:
        """Starts an emitter; `victim.emitter` lists the options."""
        return self.start(name, "victim.emitter", json.dumps(options))

    def facts(self, emitter: Process, within: float = 120.0) -> dict[str, Any]:
        """Waits for the end of an emitter, and returns its facts."""
        code = emitter.ended(within)
        assert code == 0, f"{emitter.name} ended with {code}:\n{tail(emitter.text)}"
        said = [line for line in emitter.text.splitlines() if line.startswith("{")]  # warnings may come after it
        return cast(dict[str, Any], json.loads(said[-1]))

    def rests(self, within: float) -> bool:
        """Waits until no delivery is open; returns False if none is closed for so many seconds."""
        left = self.ledger.open()
        try:
            while left:
                until(lambda before=left: self.ledger.open() < before, within, "more is closed")  # type: ignore[misc]  # mypy knows no such lambda
                left = self.ledger.open()
        except NotInTime:
            return False
        return True

    def judge(self, outcome: Outcome, within: float, aside: str = "") -> Outcome:
        """Waits until no delivery is open, and records lost and double effects, without those of the event `aside`."""
        rested = self.rests(within)
        balance = self.ledger.balance(aside)
        outcome.events, outcome.lost, outcome.double = balance.events, len(balance.lost), balance.double
        outcome.figures |= {name: count for name, count in balance.states.items() if name != "done"}
        outcome.must(rested, f"{self.ledger.open()} deliveries are still open")
        outcome.must(not balance.lost, f"lost: {balance.lost[:3]}")
        outcome.must(balance.double == 0, f"{balance.double} double effects")
        outcome.must(not balance.ghosts, f"effects of what was not committed: {balance.ghosts[:3]}")
        return outcome

    def end(self) -> None:
        """Kills all processes with their groups."""
        for process in self.processes:
            process.kill_all()


def ready(worker: Process) -> bool:
    """Whether a worker has reported that it is ready; its name is new, so its log has no earlier start."""
    assert worker.alive, f"{worker.name} ended:\n{tail(worker.text)}"
    return f"{worker.name}@chaos ready." in worker.text


@contextmanager
def world(
    servers: Servers,
    folder: Path,
    stack: str,
    *,
    haste: bool,
    mutant: str | None = None,
    handlers: str = "victim.handlers",
) -> Iterator[World]:
    """Opens a world with empty queues and new tables; its folder remains."""
    folder.mkdir(parents=True)
    server, database = _servers(servers, stack)
    environ = {
        "NITRO_HOME": str(folder / ".nitro"),
        "NITRO_HANDLERS": handlers,
        "NITRO_DB_URL": _url(database, folder),
        **({"NITRO_BROKER_URL": server.url} if server is not None else {}),
        **({"CHAOS_HASTE": "1"} if haste else {}),
        **({"CHAOS_MUTANT": mutant} if mutant else {}),
        "CHAOS_FOLDER": str(folder),
    }
    engine = create_engine(environ["NITRO_DB_URL"], poolclass=NullPool)
    if database is None:
        event.listen(engine, "connect", lambda driver, _: driver.execute("PRAGMA busy_timeout=30000"))
    made = World(
        stack=stack,
        folder=folder,
        haste=haste,
        environ=environ,
        messages=Folder(folder / ".nitro/queue") if server is None else server,
        server=server,
        database=database,
        ledger=Ledger(engine),
    )
    try:
        made.run("prepare", "victim.prepare")
        yield made
    finally:
        made.end()
        engine.dispose()


def _servers(servers: Servers, stack: str) -> tuple[Broker | None, PostgreSQL | None]:
    """Returns the broker, with empty queues, and the database server."""
    if stack == "embedded":
        return None, None
    broker = servers.the(Redis if stack == "redis" else RabbitMQ)
    assert isinstance(broker, Redis | RabbitMQ)
    for queue in (QUEUE, "parked"):
        broker.empty(queue)
        broker.delete(queue)
    database = servers.the(PostgreSQL)
    assert isinstance(database, PostgreSQL)
    return broker, database


def _url(database: PostgreSQL | None, folder: Path) -> str:
    if database is None:
        return f"sqlite:///{folder / 'nitro.db'}"
    return database.create(f"chaos_{os.urandom(6).hex()}")
