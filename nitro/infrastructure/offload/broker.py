"""Broker: what the connections of an app say of its broker, and a connection of Nitro's own to it.

The settings of an app name its broker in many ways: a URL, a list, one for reading and one for writing, the
environment, a transport. Celery and kombu are asked, and no setting is read for its text.
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
"""Kinds of transport, as kombu names them: `redis` is that of `rediss://` and `sentinel://` too."""
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
"""Settings each of which names a broker."""
BROKER_VARIABLES = ("CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_BROKER_READ_URL")
"""The same in the environment."""
WRITE_BROKER_SETTINGS = ("broker_url", "broker_write_url", "broker_host", "broker_transport")
"""Those that decide where an app publishes, and through what kind of transport."""

CONNECT_SECONDS = 4.0
"""Seconds for a connection, where the app allows any number of them."""

ACQUIRE_SECONDS = 5.0
"""Seconds for a producer, likewise."""

TRANSPORT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    REDIS: {
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 25,
    },
    AMQP: {"read_timeout": 5, "write_timeout": 5},
}
"""Transport options after which a broker that says nothing is taken for dead, by the kind of transport."""

BrokerSettings = tuple[object, ...]

_drivers: WeakKeyDictionary[Celery, tuple[BrokerSettings, str]] = WeakKeyDictionary()
_pools: WeakKeyDictionary[Celery, tuple[BrokerSettings, Any]] = WeakKeyDictionary()


def broker_settings(app: Celery) -> BrokerSettings:
    """The settings that decide which broker the app publishes through; others mean another broker.

    The environment is not asked, which costs more than all else and changes at most before a program's first emit.
    """
    return tuple(configured_values(app, WRITE_BROKER_SETTINGS))


def names_broker(app: Celery) -> bool:
    """Whether the app, or the environment of Celery, names a broker in any way."""
    return any(map(os.environ.get, BROKER_VARIABLES)) or any(
        app.conf.value_set_for(name) and app.conf[name] for name in BROKER_SETTINGS
    )


def driver_of(app: Celery) -> str:
    """The kind of transport that the app publishes through, as kombu names it; empty if that cannot be told.

    Asked at each emit, so it is kept until the settings of the app change.
    """
    now, known = broker_settings(app), _drivers.get(app)
    if known is None or known[0] != now:
        known = _drivers[app] = now, _find_driver(app)
    return known[1]


def _find_driver(app: Celery) -> str:
    try:
        return _driver_type(app.connection_for_write())
    except Exception:
        # Who connects is told what is wrong; here nothing is known, of a transport that is not installed say.
        logger.debug("the kind of the broker cannot be told", exc_info=True)
        return ""


def _driver_type(connection: Any) -> str:
    return str(connection.get_transport_cls().driver_type)


def is_embedded(app: Celery) -> bool:
    """Whether its broker serves this machine only, as the default database does."""
    return driver_of(app) in EMBEDDED_DRIVERS


def set_timeouts(connection: Any, given: Mapping[str, Any], *, confirms: bool) -> Any:
    """The connection, with options of the kind of its transport: it does not wait for ever.

    Args:
        given: transport options of the app, which are kept.
        confirms: whether kombu waits for the confirm of each message on RabbitMQ; never where greenlets are threads.
    """
    driver = _driver_type(connection)
    # Greenlets that wait for confirms on one connection read each other's.
    own = {"confirm_publish": confirms and not greenlets.is_threading_patched()} if driver == AMQP else {}
    connection.transport_options = {**TRANSPORT_OPTIONS.get(driver, {}), **given, **own}
    connection.connect_timeout = connection.connect_timeout or CONNECT_SECONDS
    return connection


def connect_to_any(connection: Any, given: Mapping[str, Any], *, confirms: bool = False) -> None:
    """Connect to the server that comes next, or to one of the others in the list where it does not answer.

    Raises:
        Exception: none of them answers; what the transport raises of the last.
    """
    for left in reversed(range(len(connection.alt) or 1)):
        try:
            set_timeouts(connection, given, confirms=confirms).ensure_connection(max_retries=0)
            return
        except Exception:
            connection.maybe_switch_next()
            if not left:
                raise


@contextmanager
def acquire_producer(app: Celery) -> Iterator[Any]:
    """A producer for calls of a task, on a connection that does not wait for ever, and confirms where the broker can.

    Raises:
        OperationalError: no server of a list answers, or all producers are in use.
    """
    conf = app.conf
    with _producer_pool(app).acquire(
        block=True, timeout=conf.broker_pool_acquire_timeout or ACQUIRE_SECONDS
    ) as producer:
        connection = producer.connection
        if connection.alt and not connection.connected:  # kombu gives up before it comes to the second server
            connect_to_any(connection, conf.broker_transport_options, confirms=True)
        yield producer


def _producer_pool(app: Celery) -> Any:
    now, known = broker_settings(app), _pools.get(app)
    if known is None or known[0] != now:
        connection = set_timeouts(app.connection_for_write(), app.conf.broker_transport_options, confirms=True)
        known = _pools[app] = now, producers[connection]
    return known[1]
