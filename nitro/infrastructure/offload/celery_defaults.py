"""Settings that Nitro adds to Celery apps: safe defaults to its own app, and a broker to an app that names none."""

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
    # A lost pool process sends no more results, so the worker replaces it after 1 s.
    "worker_lost_wait": 1.0,
    # A busy worker reserves no messages that an idle worker could take (Celery user guide: Optimizing).
    "worker_prefetch_multiplier": 1,
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    # A worker waits for a broker that is down without limit; a publisher has time-outs.
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
    """Default settings that apply only while the app uses Nitro's broker.

    Args:
        url: the URL of Nitro's broker.
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
        """Returns a setting that applies, else the default."""
        try:
            return self[name]
        except KeyError:
            return default

    @property
    def _applies(self) -> bool:
        conf = self._app.conf
        return bool(conf.broker_read_url == conf.broker_write_url == self._url)


def configure_own_app(app: Celery, *, queue: bool = False) -> Celery:
    """Adds safe defaults to an app of Nitro's own, and returns the app.

    Args:
        queue: whether its default queue is `nitro`.
    """

    def apply() -> None:
        _add_defaults(app, SAFE_SETTINGS)
        _add_broker(app)
        _add_defaults(app, _result_settings(app))
        _add_defaults(app, _driver_settings(driver_of(app), queue=queue))

    return _on_each_configure(app, _own_apps, apply)


def configure_users_app(app: Celery) -> Celery:
    """Adds Nitro's broker and result backend to an app that names no broker, and returns the app."""

    def apply() -> None:
        url = _add_broker(app)
        if url is not None:
            app.conf.add_defaults(ConditionalSettings(app, url, _unset_settings(app, _result_settings(app))))

    return _on_each_configure(app, _bound_apps, apply)


def _add_broker(app: Celery) -> str | None:
    """Adds Nitro's broker as a default and returns its URL; None if the app names a broker."""
    if names_broker(app):
        return None
    url = _broker_url()
    if app.conf.value_set_for("broker_url"):  # an empty URL, which a default does not replace
        app.conf.broker_url = url
    _add_defaults(app, {"broker_url": url})
    return url


def _result_settings(app: Celery) -> dict[str, Any]:
    """Returns the settings of Nitro's result backend; none for an app that names a backend."""
    if app.conf.value_set_for("result_backend"):
        return {}
    settings = Settings.load()
    backend = {"result_backend": settings.result_backend}
    if not settings.result_backend.startswith("db+sqlite"):
        return backend
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {**backend, "database_engine_options": {"connect_args": {"timeout": 30}}}


def _on_each_configure(app: Celery, configured_apps: WeakSet[Celery], apply: Callable[[], None]) -> Celery:
    """Calls `apply` if the app is configured, and each time that the app reads its configuration."""
    if app not in configured_apps:
        configured_apps.add(app)
        app.on_after_configure.connect(lambda **_signal: apply(), weak=False)
        if app.configured:
            apply()
    return app


def _add_defaults(app: Celery, defaults: dict[str, Any]) -> None:
    app.conf.add_defaults(_unset_settings(app, defaults))


def _unset_settings(app: Celery, defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in defaults.items() if not app.conf.value_set_for(key)}


def _broker_url() -> str:
    """Returns the URL of Nitro's broker; makes the folders of the embedded broker."""
    settings = Settings.load()
    if not settings.broker_url.startswith("filesystem:"):
        return settings.broker_url
    home = settings.home
    for folder in (home, *map(Path, folder_options(home).values())):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder_url(home)


def _driver_settings(driver: str, *, queue: bool) -> dict[str, Any]:
    """Returns the settings that Nitro's own app needs for its broker.

    On RabbitMQ these are quorum queues behind topic exchanges, which Celery needs for countdowns.
    """
    settings: dict[str, Any] = {"task_default_queue": "nitro"} if queue else {}
    if driver == REDIS:
        return {**settings, "broker_transport_options": dict(TRANSPORT_OPTIONS[REDIS])}
    if driver != AMQP:
        return settings
    if not greenlets.is_threading_patched():  # greenlets that wait for confirms on one connection read each other's
        settings["broker_transport_options"] = {"confirm_publish": True}
    return {**settings, **QUORUM_SETTINGS} if queue else settings
