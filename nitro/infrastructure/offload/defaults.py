"""Settings that Nitro puts into Celery apps: safe ones into its own, and a broker into one that names none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from nitro.infrastructure import greenlets
from nitro.infrastructure.offload.broker import AMQP, OPTIONS, REDIS, driver_of, names_one
from nitro.infrastructure.offload.folder import folders_of, url_of
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

TRANSPORT_ALIASES["folder"] = "nitro.infrastructure.offload.folder:Transport"

QUORUM = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
}

_own: WeakSet[Celery] = WeakSet()
_bound: WeakSet[Celery] = WeakSet()


class Lent(dict[str, Any]):
    """Settings that an app has for as long as it has the broker that it was lent, too.

    Args:
        url: the broker.
    """

    def __init__(self, app: Celery, url: str, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._app, self._url = app, url

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) and self._hold

    def __getitem__(self, name: str) -> Any:
        if name in self:
            return super().__getitem__(name)
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping."""
        try:
            return self[name]
        except KeyError:
            return default

    @property
    def _hold(self) -> bool:
        conf = self._app.conf
        return bool(conf.broker_read_url == conf.broker_write_url == self._url)


def prepare(app: Celery, *, queue: bool = False) -> Celery:
    """Put safe settings into an app of Nitro's own, where it has none; returns the app.

    Args:
        queue: whether it has Nitro's queue, too.
    """

    def fill() -> None:
        _add(app, SAFE)
        _lend_broker(app)
        _add(app, _results(app))
        _add(app, _of_driver(driver_of(app), queue=queue))

    return _whenever_configured(app, _own, fill)


def lend(app: Celery) -> Celery:
    """Put Nitro's broker, and its results, into an app that names no broker in any way; returns the app."""

    def fill() -> None:
        url = _lend_broker(app)
        if url is not None:
            app.conf.add_defaults(Lent(app, url, _unset(app, _results(app))))

    return _whenever_configured(app, _bound, fill)


def _lend_broker(app: Celery) -> str | None:
    """The URL of Nitro's, which the app has now, if it has named none; it yields to one that is named later."""
    if names_one(app):
        return None
    url = _broker_url()
    if app.conf.value_set_for("broker_url"):  # an empty one, over which no default comes
        app.conf.broker_url = url
    _add(app, {"broker_url": url})
    return url


def _results(app: Celery) -> dict[str, Any]:
    """The settings of Nitro's result backend, for an app that names none."""
    if app.conf.value_set_for("result_backend"):
        return {}
    settings = Settings.load()
    backend = {"result_backend": settings.result_backend}
    if not settings.result_backend.startswith("db+sqlite"):
        return backend
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {**backend, "database_engine_options": {"connect_args": {"timeout": 30}}}


def _whenever_configured(app: Celery, done: WeakSet[Celery], fill: Callable[[], None]) -> Celery:
    """Fill in settings now, and after each time that the app reads its configuration."""
    if app not in done:
        done.add(app)
        app.on_after_configure.connect(lambda **_signal: fill(), weak=False)
        if app.configured:
            fill()
    return app


def _add(app: Celery, defaults: dict[str, Any]) -> None:
    app.conf.add_defaults(_unset(app, defaults))


def _unset(app: Celery, defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in defaults.items() if not app.conf.value_set_for(key)}


def _broker_url() -> str:
    """Nitro's broker; the folders of the embedded one are made."""
    settings = Settings.load()
    if not settings.broker_url.startswith("filesystem:"):
        return settings.broker_url
    home = settings.home
    for folder in (home, *map(Path, folders_of(home).values())):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return url_of(home)


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
