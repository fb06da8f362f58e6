"""Celery apps on brokers that are servers."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery import Celery

from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.courier import courier
from nitro.infrastructure.outbox.relay import emitters

DATABASE = 10
"""Of Redis; tests empty it."""
PATIENCE = 20.0
"""Seconds."""
PLACES = {
    "redis": (f"redis://127.0.0.1:6379/{DATABASE}", 6379),
    "amqp": ("amqp://guest:guest@127.0.0.1:5672//", 5672),
}


@contextmanager
def broker_away() -> Iterator[None]:
    """The broker did not answer a moment ago, and is not asked again as long as this lasts, nor by its end."""
    courier._failures, courier._pause_ends = 1, math.inf
    try:
        yield
    finally:
        emitters.stop(PATIENCE)
        courier._failures, courier._pause_ends = 0, 0.0


def bound(broker_url: str) -> Celery:
    """A bound app with that broker and no results."""
    app = Celery("shop", set_as_current=False)
    app.config_from_object({"broker_url": broker_url, "worker_hijack_root_logger": False})
    return bind(app)


def on_server(broker: str) -> Celery:
    """A bound app on a real server; skips loudly where none answers."""
    url, port = PLACES[broker]
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError as error:
        if os.environ.get("NITRO_TEST_SERVERS") == "required":
            raise
        pytest.skip(f"MISSING SERVER: {broker} does not answer at 127.0.0.1:{port}: {error}")
    return bound(url)
