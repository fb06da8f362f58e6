"""A Celery app, its worker in this process, and the state of a new process for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import pytest
from celery import Celery, _state
from celery.app.trace import reset_worker_optimizations
from celery.contrib.testing.worker import start_worker
from kombu.transport import memory

from nitro.infrastructure import database, scope
from nitro.infrastructure.events import Emission, events
from nitro.infrastructure.events.ports import dispatcher_slot
from nitro.infrastructure.offload import app as apps
from nitro.infrastructure.offload import declarations
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.broker import driver_of as broker_driver_of
from nitro.infrastructure.offload.broker import is_embedded as has_embedded_broker
from nitro.infrastructure.offload.dispatcher import CeleryDispatcher
from nitro.infrastructure.offload.envelope import Envelope
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox.relay import emitter_relay
from nitro.infrastructure.outbox.writer import has_shared_database
from nitro.infrastructure.scope import current_cause

__all__ = [
    "IN_MEMORY",
    "Outcomes",
    "broker_driver_of",
    "current_app",
    "current_cause",
    "has_embedded_broker",
    "has_shared_database",
    "new_process",
    "read_message",
    "real_dispatcher",
    "running_task_of",
    "solo_worker",
    "working",
]

IN_MEMORY = {
    "broker_url": "memory://",
    "result_backend": "cache+memory://",
    "broker_transport_options": {"polling_interval": 0.005},
    "worker_hijack_root_logger": False,
}
LOOK_AGAIN = 0.02
PATIENCE = 20.0


@contextmanager
def new_process(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Gives Nitro, Celery and the memory broker the state of a new process with its files in a folder, in the block."""
    monkeypatch.setattr(events, "_ever_connected", WeakSet())
    for slot in (apps._bound_app, apps._own_app):
        monkeypatch.setattr(slot, "value", None)
    for name in [name for name in os.environ if name.startswith("NITRO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NITRO_HOME", str(folder / "home"))
    monkeypatch.setenv("NITRO_DB_URL", f"sqlite:///{folder / 'nitro.db'}")
    database.reset()
    current, default = _state._tls.current_app, _state.default_app
    _state._tls.current_app, _state.default_app = None, None
    memory.Channel.queues.clear()
    memory.Transport.global_state.clear()
    publisher._failures, publisher._has_waited = 0, False
    with _declarations_restored():
        declarations.declarations_by_name.clear()
        yield
        publisher.drain(PATIENCE)
        emitter_relay.stop(PATIENCE)
        emitter_relay._thread._reset()
        for app in (apps._bound_app.value, apps._own_app.value):
            if app is not None:
                app.close()
        memory.Channel.queues.clear()
        _state._tls.current_app, _state.default_app = current, default
    database.reset()


@contextmanager
def real_dispatcher() -> Iterator[None]:
    """Installs the real dispatcher without a Celery app that hears of declarations; restores all declarations."""
    hooks = declarations.declaration_hooks.replaced()
    with dispatcher_slot.replaced(CeleryDispatcher()), hooks, _declarations_restored():
        yield


@contextmanager
def _declarations_restored() -> Iterator[None]:
    by_name = dict(declarations.declarations_by_name)
    yield
    declarations.declarations_by_name.clear()
    declarations.declarations_by_name.update(by_name)


@contextmanager
def running_task_of(emission: Emission) -> Iterator[None]:
    """Makes an emission the cause of the block's emissions, as a worker does around a handler."""
    token = scope.set_task_cause(emission)
    try:
        yield
    finally:
        scope.reset_task_cause(token)


def read_message(kwargs: Mapping[str, Any], handler: str) -> None:
    """Reads the keyword arguments of a task message as a worker does, and raises its errors."""
    Envelope.read(dict(kwargs), handler)


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


def solo_worker(app: Celery, loglevel: str = "WARNING") -> AbstractContextManager[Any]:
    """Runs a worker with the solo pool in a thread; its heartbeat timer wakes the loop, so that it can stop."""
    settings = {"pool": "solo", "loglevel": loglevel, "without_heartbeat": False}
    return cast(AbstractContextManager[Any], start_worker(app, perform_ping_check=False, **settings))


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
