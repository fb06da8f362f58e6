"""The servers that rows need, on loopback, and databases on them that are removed after the row."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from sqlalchemy import Engine, create_engine, text

PORTS = {"redis": 6379, "rabbitmq": 5672, "postgresql": 5432}
REDIS = "redis://127.0.0.1:6379/15"
RABBITMQ = "amqp://guest:guest@127.0.0.1:5672//"
POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432"
QUEUE = f"nitro-bench-{os.getpid()}"


def missing_server(name: str) -> str:
    """Returns the reason why a server cannot be used; empty when it can."""
    try:
        socket.create_connection(("127.0.0.1", PORTS[name]), timeout=2).close()
    except OSError as error:
        return f"MISSING SERVER: {name} at 127.0.0.1:{PORTS[name]}: {error}"
    return ""


@contextmanager
def database(kind: str) -> Iterator[Engine]:
    """Yields an engine on an empty database, a file in the working folder or one on the server, and removes it."""
    if kind == "sqlite":
        with TemporaryDirectory(prefix=".bench-", dir=".") as folder:
            engine = create_engine(f"sqlite:///{folder}/bench.db")
            yield engine
            engine.dispose()
        return
    name = f"nitro_bench_{os.getpid()}"
    server = create_engine(f"{POSTGRESQL}/postgres", isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = create_engine(f"{POSTGRESQL}/{name}")
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()
