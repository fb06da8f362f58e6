"""Brokers that are not named by one URL, and lists with servers that are away: contract sections 2 and 7."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
from celery import Celery
from kombu.transport import redis as kombus

from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from support import faults
from support.app import broker_driver_of, has_embedded_broker
from support.broker import drain_publisher, queue_sizes
from support.brokers import PLACES, OwnRedis, own_redis
from support.waiting import until

pytestmark = pytest.mark.usefixtures("offloading")

QUEUE = "celery"


class Renamed(kombus.Transport):  # type: ignore[misc]  # kombu's is not typed
    """A transport of the user's own."""


DRIVERS: dict[str, tuple[dict[str, Any], str]] = {
    "list": ({"broker_url": ["redis://a", "redis://b"]}, "redis"),
    "several": ({"broker_url": "amqp://a;amqp://b"}, "amqp"),
    "only to write": ({"broker_write_url": "redis://a"}, "redis"),
    "to write and to read": ({"broker_write_url": "redis://a", "broker_read_url": "amqp://a"}, "redis"),
    "write before url": ({"broker_url": "amqp://a", "broker_write_url": "redis://a"}, "redis"),
    "host": ({"broker_host": "a", "broker_transport": "redis"}, "redis"),
    "host alone": ({"broker_host": "a"}, "amqp"),
    "tls": ({"broker_url": "rediss://a"}, "redis"),
    "sentinel": ({"broker_url": "sentinel://a:26379;sentinel://b:26379"}, "redis"),
    "socket": ({"broker_url": "redis+socket:///run/redis.sock"}, "redis"),
    "capitals": ({"broker_url": "REDIS://a"}, "redis"),
    "pyamqp": ({"broker_url": "pyamqp://a"}, "amqp"),
    "class": ({"broker_transport": f"{__name__}:Renamed", "broker_host": "a"}, "redis"),
    "alias": ({"broker_transport": "memory"}, "memory"),
    "not installed": ({"broker_url": "nosuch://a"}, ""),
}


@pytest.mark.parametrize(("settings", "driver"), DRIVERS.values(), ids=DRIVERS)
def test_the_kind_of_broker_is_asked_of_the_connection(
    celery_app: Callable[..., Celery], settings: dict[str, Any], driver: str
) -> None:
    """The driver follows from the connection, in whichever settings the app names its broker."""
    app = celery_app("shop")
    app.config_from_object(settings)
    assert broker_driver_of(bind(app)) == driver
    assert has_embedded_broker(app) is (driver == "memory")


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL"])
def test_the_kind_of_broker_may_come_from_the_environment(
    celery_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Celery's environment variables win over the settings."""
    monkeypatch.setenv(name, "redis://a")
    assert broker_driver_of(bind(celery_app("shop", broker="memory://"))) == "redis"


@pytest.mark.parametrize("name", ["broker_url", "broker_write_url", "broker_transport"])
def test_a_change_of_the_broker_is_seen(celery_app: Callable[..., Celery], name: str) -> None:
    """The driver is determined again after a change of the settings."""
    app = bind(celery_app("shop", broker="amqp://a"))
    assert broker_driver_of(app) == "amqp"
    app.conf.broker_url = None
    app.conf[name] = "redis" if name == "broker_transport" else "redis://a"
    assert broker_driver_of(app) == "redis"


@pytest.fixture
def servers() -> Iterator[list[OwnRedis]]:
    """Three servers of Redis."""
    with ExitStack() as stack:
        yield [stack.enter_context(own_redis()) for _ in range(3)]


def as_list(servers: list[OwnRedis]) -> list[str]:
    return [server.url for server in servers]


def as_text(servers: list[OwnRedis]) -> str:
    return ";".join(as_list(servers))


@pytest.fixture(params=["at-least-once", "broker"])
def place(evt: Event, request: pytest.FixtureRequest) -> Callable[[], object]:
    """A function that emits an event for one handler of that delivery."""
    on(evt, offload={"delivery": request.param}, name="shop.handler")(lambda sender: None)
    return lambda: emit(evt)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets time-outs of one second instead of five."""
    faults.set_redis_timeouts(monkeypatch, 1.0)


@pytest.mark.server
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("disable", [OwnRedis.freeze, OwnRedis.end], ids=["frozen", "dead"])
@pytest.mark.parametrize("form", [as_list, as_text])
def test_what_is_emitted_leaves_through_a_server_that_answers(
    celery_app: Callable[..., Celery], servers: list[OwnRedis], place: Any, form: Any, disable: Any
) -> None:
    """Messages go to the last server of the list when the others are away from the start."""
    for server in servers[:2]:
        disable(server)
    app = celery_app("shop")
    app.conf.broker_url = form(servers)
    bind(app)
    for _ in range(5):
        place()
    until(lambda: servers[2].length(QUEUE) == 5)


@pytest.mark.server
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("disable", [OwnRedis.freeze, OwnRedis.end], ids=["frozen", "dead"])
def test_the_publisher_moves_on_when_its_server_goes_away(
    celery_app: Callable[..., Celery], servers: list[OwnRedis], place: Any, disable: Any
) -> None:
    """The publisher connects to the next server each time that its own goes away."""
    app = celery_app("shop")
    app.conf.broker_url = as_list(servers)
    bind(app)
    place()
    drain_publisher()
    for server, other in pairwise(servers):
        assert server.length(QUEUE) == 1
        disable(server)
        place()
        until(lambda server=other: server.length(QUEUE) == 1)  # type: ignore[misc]  # mypy knows no default of a lambda


@pytest.mark.server
@pytest.mark.usefixtures("quick", "servers")
def test_a_call_of_the_task_finds_a_server_that_answers(
    celery_app: Callable[..., Celery], servers: list[OwnRedis], evt: Event
) -> None:
    """`handler.task.delay()`, which has no row to wait in, finds a server that answers."""
    servers[0].freeze()
    app = celery_app("shop")
    app.conf.broker_url = as_list(servers[:2])
    bind(app)
    on(evt, offload=True, name="shop.handler")(lambda sender: None).task.delay("ada")
    assert servers[1].length(QUEUE) == 1


@pytest.mark.server
@pytest.mark.usefixtures("quick")
def test_a_list_of_queues_is_asked_of_a_server_that_answers(
    celery_app: Callable[..., Celery], servers: list[OwnRedis]
) -> None:
    """Queue sizes come from a server that answers, also when only `broker_read_url` is a list."""
    servers[0].freeze()
    app = celery_app("shop")
    app.config_from_object({"broker_read_url": as_list(servers), "broker_write_url": servers[1].url})
    assert queue_sizes(bind(app), [QUEUE]) == {QUEUE: 0}


@pytest.mark.server
def test_the_second_server_of_rabbitmq_is_found(celery_app: Callable[..., Celery], place: Any) -> None:
    """Messages go to the second server of RabbitMQ when the first is down."""
    app = celery_app("shop")
    app.conf.broker_url = ["amqp://guest:guest@127.0.0.1:1//", PLACES["amqp"][0]]
    app.conf.task_default_queue = "nitro-failover"
    bind(app)
    with app.connection_for_write(url=PLACES["amqp"][0]) as connection:
        connection.default_channel.queue_delete("nitro-failover")
        place()
        until(lambda: queue_sizes(app, ["nitro-failover"]) == {"nitro-failover": 1})
        connection.default_channel.queue_delete("nitro-failover")
