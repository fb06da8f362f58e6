"""Settings that Nitro puts into Celery apps: safe ones into its own, and a broker into one that names none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from nitro.infrastructure import greenlets
from nitro.infrastructure.offload.broker import AMQP, OPTIONS, REDIS, driver_of, names_one
from nitro.settings import Settings

SAFE: dict[str, Any] = {
    # A task that was running when its worker died is run again (Celery user guide: Tasks, acks_late).
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # A pool process that has died has said all it had to say; its place is needed.
    "worker_lost_wait": 1.0,
    # A busy worker keeps nothing that an idle one could do (Celery user guide: Optimizing).
    "worker_prefetch_multiplier": 1,
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    # A broker that is away is waited for, and never for ever by whoever publishes.
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": 4,
    "broker_pool_acquire_timeout": 5,
}

FOLDER = "folder"
TRANSPORT_ALIASES[FOLDER] = "nitro.infrastructure.offload.folder:Transport"

POLLING = 0.02
"""Seconds between two looks into the folder of the embedded broker."""

QUORUM = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
}

_own: WeakSet[Celery] = WeakSet()
_bound: WeakSet[Celery] = WeakSet()


def prepare(app: Celery, *, queue: bool = False) -> Celery:
    """Put safe settings into an app of Nitro's own, where it has none; returns the app.

    Args:
        queue: whether it has Nitro's queue, too.
    """

    def fill() -> None:
        _add(app, SAFE)
        _lend_broker(app)
        _lend_results(app)
        _add(app, _of_driver(driver_of(app), queue=queue))

    return _whenever_configured(app, _own, fill)


def lend(app: Celery) -> Celery:
    """Put Nitro's broker, and its results, into an app that names no broker in any way; returns the app."""

    def fill() -> None:
        if _lend_broker(app):
            _lend_results(app)

    return _whenever_configured(app, _bound, fill)


def _lend_broker(app: Celery) -> bool:
    """Whether the app has named none."""
    if names_one(app):
        return False
    settings = Settings.load()
    if app.conf.value_set_for("broker_url"):  # an empty one, over which no default comes
        app.conf.broker_url = settings.broker_url
    _add(app, {"broker_url": settings.broker_url})
    if driver_of(app) == "filesystem":
        _add(app, _folder(settings))
    return True


def _lend_results(app: Celery) -> None:
    if app.conf.value_set_for("result_backend"):
        return
    settings = Settings.load()
    _add(app, {"result_backend": settings.result_backend})
    if settings.result_backend.startswith("db+sqlite"):
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _add(app, {"database_engine_options": {"connect_args": {"timeout": 30}}})


def _whenever_configured(app: Celery, done: WeakSet[Celery], fill: Callable[[], None]) -> Celery:
    """Fill in settings now, and after each time that the app reads its configuration."""
    if app not in done:
        done.add(app)
        app.on_after_configure.connect(lambda **_signal: fill(), weak=False)
        if app.configured:
            fill()
    return app


def _add(app: Celery, defaults: dict[str, Any]) -> None:
    app.conf.add_defaults({key: value for key, value in defaults.items() if not app.conf.value_set_for(key)})


def _folder(settings: Settings) -> dict[str, Any]:
    """The embedded broker."""
    queue, control = settings.home / "queue", settings.home / "control"
    for folder in (settings.home, queue, control):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = {"data_folder_in": str(queue), "data_folder_out": str(queue), "control_folder": str(control)}
    return {"broker_transport": FOLDER, "broker_transport_options": {**options, "polling_interval": POLLING}}


def _of_driver(driver: str, *, queue: bool) -> dict[str, Any]:
    """What the broker of Nitro's own app needs; on RabbitMQ quorum queues behind topic exchanges, for countdowns."""
    named: dict[str, Any] = {"task_default_queue": "nitro"} if queue else {}
    if driver == REDIS:
        return {**named, "broker_transport_options": dict(OPTIONS[REDIS])}
    if driver != AMQP:
        return named
    if not greenlets.are_threads():  # two would read one connection, and one miss its confirm
        named["broker_transport_options"] = {"confirm_publish": True}
    return {**named, **QUORUM} if queue else named
