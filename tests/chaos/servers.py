"""The servers of the harness, which are killed, frozen and emptied."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from kombu import Connection
from kombu.exceptions import OperationalError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.chaos.processes import Process, start
from tests.chaos.server import PLAIN, MissingServer, Server, free_port, needed


class Redis(Server):
    """A Redis without persistence, so that a kill loses all messages."""

    name = "redis"

    @property
    def url(self) -> str:
        """The broker URL for Celery."""
        return f"redis://127.0.0.1:{self.port}/0"

    def launch(self) -> Process:
        """Starts the program."""
        only_here = ("--bind", "127.0.0.1", "--port", self.port, "--save", "", "--appendonly", "no")
        command = [needed("redis-server"), *only_here, "--dir", self.folder]
        return start(self.name, command, PLAIN, self.folder)

    def answers(self) -> bool:
        """Whether the server answers PING."""
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def size(self, queue: str) -> int:
        """Returns the number of ready messages."""
        with self._client() as client:
            return int(client.llen(queue))  # type: ignore[arg-type]  # the client is not async

    def empty(self, queue: str) -> None:
        """Deletes queues, bindings and unacknowledged messages with FLUSHALL."""
        with self._client() as client:
            client.flushall()

    def delete(self, queue: str) -> None:
        """Deletes the queue with DEL."""
        with self._client() as client:
            client.delete(queue)

    def _client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)


class RabbitMQ(Server):
    """A RabbitMQ node with its own port mapper."""

    name = "rabbitmq"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._mapper_port, self._dist_port = free_port(), free_port()
        self._mapper: Process | None = None

    @property
    def url(self) -> str:
        """The broker URL for Celery."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def launch(self) -> Process:
        """Starts the node, and before it the port mapper if it is not running."""
        (self.folder / "plugins").write_text("[].\n")
        places = {
            "HOME": self.folder,
            "RABBITMQ_MNESIA_BASE": self.folder / "data",
            "RABBITMQ_LOG_BASE": self.folder / "log",
            "RABBITMQ_CONFIG_FILE": self.folder / "none",
            "RABBITMQ_CONF_ENV_FILE": self.folder / "none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins",
        }
        ports = {
            "RABBITMQ_NODENAME": f"chaos{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": self._dist_port,
            "ERL_EPMD_PORT": self._mapper_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        environ = {**PLAIN, **{name: str(value) for name, value in (places | ports).items()}}
        if self._mapper is None:
            self._mapper = start("epmd", [needed("epmd"), "-port", self._mapper_port], environ, self.folder)
        script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # that of Debian in PATH becomes another user
        return start(self.name, [script if script.exists() else needed(script.name)], environ, self.folder)

    def answers(self) -> bool:
        """Whether the node opens a channel."""
        return self._do(lambda channel: True, otherwise=False)

    def close(self) -> None:
        """Kills the node and the port mapper."""
        super().close()
        if self._mapper is not None:
            self._mapper.kill_all()

    def size(self, queue: str) -> int:
        """Returns the number of ready messages."""
        return self._do(lambda channel: channel.queue_declare(queue, passive=True).message_count, otherwise=0)

    def empty(self, queue: str) -> None:
        """Purges the queue."""
        self._do(lambda channel: channel.queue_purge(queue), otherwise=0)

    def delete(self, queue: str) -> None:
        """Deletes the queue."""
        self._do(lambda channel: channel.queue_delete(queue), otherwise=0)

    def _do(self, act: Callable[..., int], otherwise: int) -> int:
        with Connection(self.url, connect_timeout=5) as connection:
            try:
                return act(connection.default_channel)
            except (OperationalError, *connection.connection_errors, *connection.channel_errors):
                return otherwise


class PostgreSQL(Server):
    """A PostgreSQL in its own folder."""

    name = "postgresql"

    @property
    def url(self) -> str:
        """The URL without the name of a database."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}"

    def launch(self) -> Process:
        """Starts the server; the first start creates its data folder."""
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not binaries:
            raise MissingServer("MISSING SERVER: PostgreSQL is not installed in /usr/lib/postgresql")
        user = "postgres" if os.geteuid() == 0 else None
        data = self.folder / "data"
        if user:
            shutil.chown(self.folder, user)
            self.folder.chmod(0o755)
        if not data.exists():
            command = [binaries[-1] / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"]
            subprocess.run(command, check=True, capture_output=True, user=user, cwd="/", env=PLAIN)
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return start(self.name, [binaries[-1] / "postgres", "-D", data, *options], PLAIN, self.folder, user=user)

    def answers(self) -> bool:
        """Whether the server answers a query."""
        engine = create_engine(f"{self.url}/postgres", connect_args={"connect_timeout": 5})
        try:
            with engine.connect() as connection:
                return connection.scalar(text("SELECT 1")) == 1
        except DBAPIError:
            return False
        finally:
            engine.dispose()

    def create(self, name: str) -> str:
        """Creates a database, and returns its URL."""
        engine = create_engine(f"{self.url}/postgres", isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
        finally:
            engine.dispose()
        return f"{self.url}/{name}"


Broker = Redis | RabbitMQ


class Servers:
    """A server of each kind, started at its first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[type[Server], Server] = {}

    def the(self, kind: type[Server]) -> Server:
        """Returns the running server of this kind."""
        if kind not in self.running:
            folder = self.folder / kind.name
            folder.mkdir()
            self.running[kind] = kind(folder)
        server = self.running[kind]
        if server.process is None:
            server.start()
        return server

    def close(self) -> None:
        """Kills all servers."""
        for server in self.running.values():
            server.close()
        self.running.clear()


@contextmanager
def own(folder: Path) -> Iterator[Servers]:
    """Provides servers for the block, and kills them at its end."""
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own, who must be able to get in
    servers = Servers(folder)
    try:
        yield servers
    finally:
        servers.close()
