"""The broker of an app: its kind, and connections to it that have time-outs.

The settings of an app name its broker in many ways: a URL, a list, one URL for reading and one for writing, the
environment, a transport. So the kind is read from kombu's connection and not from the text of a setting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery
from kombu.pools import producers

from nitro.infrastructure import greenlets
from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.conf import configured_values

logger = get_logger("nitro.offload")

REDIS, AMQP = "redis", "amqp"
"""Kinds of transport, as kombu names them; `rediss://` and `sentinel://` are of kind `redis` too."""
EMBEDDED_DRIVERS = ("filesystem", "memory")

BROKER_SETTINGS = (
    "broker_url",
    "broker_write_url",
    "broker_read_url",
    "broker_host",
    "broker_port",
    "broker_user",
    "broker_password",
    "broker_vhost",
    "broker_transport",
)
"""Settings that name a broker."""
BROKER_VARIABLES = ("CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_BROKER_READ_URL")
"""Environment variables that name a broker."""
WRITE_BROKER_SETTINGS = ("broker_url", "broker_write_url", "broker_host", "broker_transport")
"""Settings that decide to which broker an app publishes, and through which transport."""

CONNECT_SECONDS = 4.0
"""Seconds to wait for a connection, if the app sets no time-out."""

ACQUIRE_SECONDS = 5.0
"""Seconds to wait for a producer, if the app sets no time-out."""

TRANSPORT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    REDIS: {
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 25,
    },
    AMQP: {"read_timeout": 5, "write_timeout": 5},
}
"""Transport options that set time-outs for a broker that does not answer, by the kind of transport."""

BrokerSettings = tuple[object, ...]

_drivers: WeakKeyDictionary[Celery, tuple[BrokerSettings, str]] = WeakKeyDictionary()
_pools: WeakKeyDictionary[Celery, tuple[BrokerSettings, Any]] = WeakKeyDictionary()


def broker_settings(app: Celery) -> BrokerSettings:
    """Returns the values of the settings that decide to which broker the app publishes.

    Environment variables are left out: to read them costs more than the rest, and they do not change after the first
    emit.
    """
    return tuple(configured_values(app, WRITE_BROKER_SETTINGS))


def names_broker(app: Celery) -> bool:
    """Whether the app, or the environment of Celery, names a broker in any way."""
    return any(map(os.environ.get, BROKER_VARIABLES)) or any(
        app.conf.value_set_for(name) and app.conf[name] for name in BROKER_SETTINGS
    )


def driver_of(app: Celery) -> str:
    """Returns the kind of transport that the app publishes through, as kombu names it; empty if it is unknown.

    Each emit calls it, so the kind is cached until the settings of the app change.
    """
    settings, cached = broker_settings(app), _drivers.get(app)
    if cached is None or cached[0] != settings:
        cached = _drivers[app] = settings, _find_driver(app)
    return cached[1]


def _find_driver(app: Celery) -> str:
    try:
        return _driver_type(app.connection_for_write())
    except Exception:
        # Such as ImportError for a transport that is not installed; a later connect raises it to its caller.
        logger.debug("the kind of the broker is unknown", exc_info=True)
        return ""


def _driver_type(connection: Any) -> str:
    return str(connection.get_transport_cls().driver_type)


def is_embedded(app: Celery) -> bool:
    """Whether the app's broker serves this machine only, as the default database does."""
    return driver_of(app) in EMBEDDED_DRIVERS


def set_timeouts(connection: Any, app_options: Mapping[str, Any], *, confirms: bool) -> Any:
    """Sets time-outs on a connection, by the kind of its transport, and returns the connection.

    Args:
        app_options: transport options of the app; they override Nitro's time-outs.
        confirms: whether kombu waits for the confirm of each message on RabbitMQ; never where greenlets are threads.
    """
    driver = _driver_type(connection)
    # Greenlets that wait for confirms on one connection read each other's.
    confirm_option = {"confirm_publish": confirms and not greenlets.is_threading_patched()} if driver == AMQP else {}
    connection.transport_options = {**TRANSPORT_OPTIONS.get(driver, {}), **app_options, **confirm_option}
    connection.connect_timeout = connection.connect_timeout or CONNECT_SECONDS
    return connection


def connect_to_any(connection: Any, app_options: Mapping[str, Any], *, confirms: bool = False) -> None:
    """Connects to the first server of the connection's list that answers.

    Raises:
        Exception: no server answers; the transport's error for the last one.
    """
    for remaining_servers in reversed(range(len(connection.alt) or 1)):
        try:
            set_timeouts(connection, app_options, confirms=confirms).ensure_connection(max_retries=0)
            return
        except Exception:
            connection.maybe_switch_next()
            if not remaining_servers:
                raise


@contextmanager
def acquire_producer(app: Celery) -> Iterator[Any]:
    """Acquires a producer for calls of a task; its connection has time-outs, and confirms where the broker has them.

    Raises:
        OperationalError: no server of a list answers, or all producers are in use.
    """
    conf = app.conf
    with _producer_pool(app).acquire(
        block=True, timeout=conf.broker_pool_acquire_timeout or ACQUIRE_SECONDS
    ) as producer:
        connection = producer.connection
        if connection.alt and not connection.connected:  # kombu itself would not try the second server
            connect_to_any(connection, conf.broker_transport_options, confirms=True)
        yield producer


def _producer_pool(app: Celery) -> Any:
    settings, cached = broker_settings(app), _pools.get(app)
    if cached is None or cached[0] != settings:
        connection = set_timeouts(app.connection_for_write(), app.conf.broker_transport_options, confirms=True)
        cached = _pools[app] = settings, producers[connection]
    return cached[1]
