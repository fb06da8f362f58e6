"""The servers that rows need, on loopback; and what they leave there is removed."""

from __future__ import annotations

import os
import socket

PORTS = {"redis": 6379, "rabbitmq": 5672, "postgresql": 5432}
REDIS = "redis://127.0.0.1:6379/15"
RABBITMQ = "amqp://guest:guest@127.0.0.1:5672//"
POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432"
QUEUE = f"nitro-bench-{os.getpid()}"


def unreachable(name: str) -> str:
    """Why a server cannot be used; empty when it can."""
    try:
        socket.create_connection(("127.0.0.1", PORTS[name]), timeout=2).close()
    except OSError as error:
        return f"MISSING SERVER: {name} at 127.0.0.1:{PORTS[name]}: {error}"
    return ""
