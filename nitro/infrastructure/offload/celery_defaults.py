"""Settings that Nitro puts into Celery apps: safe ones into its own, and a broker into one that names none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from nitro.infrastructure import greenlets
from nitro.infrastructure.offload.broker import AMQP, REDIS, TRANSPORT_OPTIONS, driver_of, names_broker
from nitro.infrastructure.offload.publishing.filesystem import folder_options, folder_url
from nitro.settings import Settings

SAFE_SETTINGS: dict[str, Any] = {
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

TRANSPORT_ALIASES["folder"] = "nitro.infrastructure.offload.publishing.filesystem:Transport"

QUORUM_SETTINGS = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
}

_own_apps: WeakSet[Celery] = WeakSet()
_bound_apps: WeakSet[Celery] = WeakSet()


class ConditionalSettings(dict[str, Any]):
    """Settings that an app has for as long as it has the broker that it was lent, too.

    Args:
        url: the broker.
    """

    def __init__(self, app: Celery, url: str, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._app, self._url = app, url

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) and self._applies

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
    def _applies(self) -> bool:
        conf = self._app.conf
        return bool(conf.broker_read_url == conf.broker_write_url == self._url)


def configure_own_app(app: Celery, *, queue: bool = False) -> Celery:
    """Put safe settings into an app of Nitro's own, where it has none; returns the app.

    Args:
        queue: whether it has Nitro's queue, too.
    """

    def fill() -> None:
        _add_defaults(app, SAFE_SETTINGS)
        _add_broker(app)
        _add_defaults(app, _result_settings(app))
        _add_defaults(app, _driver_settings(driver_of(app), queue=queue))

    return _on_each_configure(app, _own_apps, fill)


def configure_users_app(app: Celery) -> Celery:
    """Put Nitro's broker, and its results, into an app that names no broker in any way; returns the app."""

    def fill() -> None:
        url = _add_broker(app)
        if url is not None:
            app.conf.add_defaults(ConditionalSettings(app, url, _unset_settings(app, _result_settings(app))))

    return _on_each_configure(app, _bound_apps, fill)


def _add_broker(app: Celery) -> str | None:
    """The URL of Nitro's, which the app has now, if it has named none; it yields to one that is named later."""
    if names_broker(app):
        return None
    url = _broker_url()
    if app.conf.value_set_for("broker_url"):  # an empty one, over which no default comes
        app.conf.broker_url = url
    _add_defaults(app, {"broker_url": url})
    return url


def _result_settings(app: Celery) -> dict[str, Any]:
    """The settings of Nitro's result backend, for an app that names none."""
    if app.conf.value_set_for("result_backend"):
        return {}
    settings = Settings.load()
    backend = {"result_backend": settings.result_backend}
    if not settings.result_backend.startswith("db+sqlite"):
        return backend
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {**backend, "database_engine_options": {"connect_args": {"timeout": 30}}}


def _on_each_configure(app: Celery, done: WeakSet[Celery], fill: Callable[[], None]) -> Celery:
    """Fill in settings now, and after each time that the app reads its configuration."""
    if app not in done:
        done.add(app)
        app.on_after_configure.connect(lambda **_signal: fill(), weak=False)
        if app.configured:
            fill()
    return app


def _add_defaults(app: Celery, defaults: dict[str, Any]) -> None:
    app.conf.add_defaults(_unset_settings(app, defaults))


def _unset_settings(app: Celery, defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in defaults.items() if not app.conf.value_set_for(key)}


def _broker_url() -> str:
    """Nitro's broker; the folders of the embedded one are made."""
    settings = Settings.load()
    if not settings.broker_url.startswith("filesystem:"):
        return settings.broker_url
    home = settings.home
    for folder in (home, *map(Path, folder_options(home).values())):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder_url(home)


def _driver_settings(driver: str, *, queue: bool) -> dict[str, Any]:
    """What the broker of Nitro's own app needs; on RabbitMQ quorum queues behind topic exchanges, for countdowns."""
    named: dict[str, Any] = {"task_default_queue": "nitro"} if queue else {}
    if driver == REDIS:
        return {**named, "broker_transport_options": dict(TRANSPORT_OPTIONS[REDIS])}
    if driver != AMQP:
        return named
    if not greenlets.is_threading_patched():  # two would read one connection, and one miss its confirm
        named["broker_transport_options"] = {"confirm_publish": True}
    return {**named, **QUORUM_SETTINGS} if queue else named
