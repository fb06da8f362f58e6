"""Safe Celery settings, put into an app where it has none of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakSet

from celery import Celery
from celery.utils.collections import ConfigurationView
from kombu.transport import TRANSPORT_ALIASES

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

_REDIS = {
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 25,
}

REDIS = ("redis", "rediss", "sentinel")
AMQP = ("amqp", "amqps", "pyamqp")

_FINITE = {"read_timeout": 5, "write_timeout": 5}
"""Seconds after which a broker that says nothing is taken for dead."""

_prepared: WeakSet[Celery] = WeakSet()


def prepare(app: Celery, *, own: bool = False) -> Celery:
    """Put the settings into an app, now and after each time it reads its configuration; returns the app."""
    if app not in _prepared:
        _prepared.add(app)

        def fill(**_signal: object) -> None:
            _fill(app, own)

        app.on_after_configure.connect(fill, weak=False)
        if app.configured:
            fill()
    return app


def _fill(app: Celery, own: bool) -> None:
    settings = Settings.load()
    _add(app, SAFE)
    if app.conf.broker_url in (None, settings.broker_url):
        _add(app, {"broker_url": settings.broker_url, "result_backend": settings.result_backend})
    transport = str(app.conf.broker_url).partition("://")[0]
    _add(app, _of_transport(transport, settings))
    if own:
        _add(app, _of_own_queue(transport))
    if str(app.conf.result_backend).startswith("db+sqlite"):
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _add(app, {"database_engine_options": {"connect_args": {"timeout": 30}}})


def setting(app: Celery, name: str) -> Any:
    """`app.conf[name]`, for whoever asks at each message: without an exception for each mapping that lacks it."""
    conf = app.conf
    if isinstance(conf, ConfigurationView) and conf.key_t is None:
        keys = _keys(name, conf.prefix, conf._keys)
        for mapping in conf.maps:
            for key in keys:
                if key in mapping:
                    return mapping[key]
    return conf[name]


@cache
def _keys(name: str, prefix: str | None, converters: tuple[Callable[[str], str], ...] | None) -> tuple[str, ...]:
    """The names under which a setting may be found in a mapping, as Celery looks for them."""
    return tuple(dict.fromkeys(ConfigurationView({}, keys=converters, prefix=prefix)._to_keys(name)))


def transport_of(app: Celery) -> str:
    """The scheme of the app's broker URL, such as `redis`."""
    url = os.environ.get("CELERY_BROKER_URL") or setting(app, "broker_url") or app.conf.broker_url  # as Celery looks
    return str(url).partition("://")[0].partition("+")[0]


def line_options(app: Celery) -> dict[str, Any]:
    """Transport options of a connection that confirms where it can and never blocks for ever, over the app's own."""
    transport = transport_of(app)
    if transport in REDIS:
        return {**_REDIS, **app.conf.broker_transport_options}
    if transport in AMQP:
        return {**_FINITE, **app.conf.broker_transport_options, "confirm_publish": False}  # see `Confirms`
    return {}


def is_embedded(app: Celery) -> bool:
    """Whether its broker serves this machine only, as the default database does."""
    return transport_of(app) in ("filesystem", "memory")


def _add(app: Celery, defaults: dict[str, Any]) -> None:
    app.conf.add_defaults({key: value for key, value in defaults.items() if not app.conf.value_set_for(key)})


def _of_transport(transport: str, settings: Settings) -> dict[str, Any]:
    """What a broker needs to be safe, by the scheme of its URL."""
    if transport == "filesystem":
        queue, control = settings.home / "queue", settings.home / "control"
        for folder in (settings.home, queue, control):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = {"data_folder_in": str(queue), "data_folder_out": str(queue), "control_folder": str(control)}
        return {"broker_transport": FOLDER, "broker_transport_options": {**options, "polling_interval": POLLING}}
    if transport in REDIS:
        return {"broker_transport_options": _REDIS}
    if transport in AMQP:
        return {"broker_transport_options": {"confirm_publish": True}}
    return {}


def _of_own_queue(transport: str) -> dict[str, Any]:
    """The queues of Nitro's own app; on RabbitMQ quorum queues behind topic exchanges, which a countdown needs."""
    queue = {"task_default_queue": "nitro"}
    if transport not in AMQP:
        return queue
    return {
        **queue,
        "task_default_queue_type": "quorum",
        "task_default_exchange_type": "topic",
        "task_create_missing_queue_type": "quorum",
        "task_create_missing_queue_exchange_type": "topic",
    }
