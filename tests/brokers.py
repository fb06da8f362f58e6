"""Celery apps on brokers that are servers."""

from __future__ import annotations

import os
import socket

import pytest
from celery import Celery

from nitro.infrastructure.offload import bind

DATABASE = 10
"""Of Redis; tests empty it."""
PLACES = {
    "redis": (f"redis://127.0.0.1:6379/{DATABASE}", 6379),
    "amqp": ("amqp://guest:guest@127.0.0.1:5672//", 5672),
}


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
