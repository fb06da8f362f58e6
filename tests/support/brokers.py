"""Celery apps whose broker is a server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import redis
from celery import Celery

from nitro.infrastructure.offload import bind
from nitro.infrastructure.outbox.relay import emitter_relay
from support.faults import set_reachable
from support.waiting import until

DATABASE = 10
"""Number of the Redis database of tests, which empty it."""
PATIENCE = 20.0
"""Seconds that a test waits for a thread to end."""
PLACES = {
    "redis": (f"redis://127.0.0.1:6379/{DATABASE}", 6379),
    "amqp": ("amqp://guest:guest@127.0.0.1:5672//", 5672),
}


@contextmanager
def broker_away() -> Iterator[None]:
    """Makes the publisher treat the broker as unreachable, as long as the block lasts."""
    set_reachable(False)
    try:
        yield
    finally:
        emitter_relay.stop(PATIENCE)
        set_reachable(True)


def bound(broker_url: str) -> Celery:
    """Returns a bound app with that broker and without a result backend."""
    app = Celery("shop", set_as_current=False)
    app.config_from_object({"broker_url": broker_url, "worker_hijack_root_logger": False})
    return bind(app)


def on_server(broker: str) -> Celery:
    """Returns a bound app on a real server; skips the test with a message if none answers."""
    url, port = PLACES[broker]
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError as error:
        if os.environ.get("NITRO_TEST_SERVERS") == "required":
            raise
        pytest.skip(f"MISSING SERVER: {broker} does not answer at 127.0.0.1:{port}: {error}")
    return bound(url)


@dataclass(frozen=True, slots=True)
class OwnRedis:
    """A Redis server of one test, which may stop it."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Broker URL of the server."""
        return f"redis://127.0.0.1:{self.port}/0"

    def freeze(self) -> None:
        """Stops the process with SIGSTOP: the server accepts connections and answers nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Continues the process with SIGCONT."""
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        """Kills the process, also when it is stopped."""
        self.process.kill()
        self.process.wait()

    def length(self, queue: str) -> int:
        """Returns the number of messages that are ready in a queue."""
        with redis.Redis(port=self.port) as client:
            return int(client.llen(queue))  # type: ignore[arg-type]  # the client is not async

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@contextmanager
def own_redis() -> Iterator[OwnRedis]:
    """Runs a Redis server as long as the block lasts; skips the test with a message if none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        assert os.environ.get("NITRO_TEST_SERVERS") != "required", "redis-server is not installed"
        pytest.skip("MISSING SERVER: redis-server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder]
        server = OwnRedis(port, subprocess.Popen(command, stdout=subprocess.DEVNULL))
        try:
            until(server._answers)
            yield server
        finally:
            server.end()
