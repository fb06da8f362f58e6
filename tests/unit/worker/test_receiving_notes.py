"""A worker on Redis records unacknowledged messages as kombu does, whatever happens to the connection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from kombu.utils.json import loads
from redis import BlockingConnectionPool, Redis
from redis.exceptions import ResponseError

from nitro.infrastructure.worker.redis_acks import use_ack_pipeline
from support.brokers import DATABASE, on_server

pytestmark = pytest.mark.server

QUEUE = f"nitro-notes-{os.getpid()}"


@pytest.fixture
def server() -> Iterator[Redis]:
    """An empty database of a real Redis."""
    on_server("redis")
    with Redis(db=DATABASE, decode_responses=True) as redis:
        redis.flushdb()
        yield redis
        redis.flushdb()


@pytest.fixture(params=["", "shop:"], ids=["plain", "prefixed"])
def prefix(request: pytest.FixtureRequest) -> str:
    """The `global_keyprefix` of the app."""
    return str(request.param)


@pytest.fixture
def channel(server: Redis, prefix: str) -> Iterator[Any]:
    """A channel with the ack pipeline and one message in its queue."""
    app = Celery("shop", broker=f"redis://127.0.0.1:6379/{DATABASE}", set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": prefix}
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        use_ack_pipeline(channel)
        app.amqp.queues.select([QUEUE])
        app.amqp.queues[QUEUE].bind(channel).declare()
        app.amqp.Producer(channel).publish({"sold": 1}, routing_key=QUEUE, exchange="", serializer="json")
        yield channel


def unacked(server: Redis, prefix: str) -> tuple[list[str], dict[str, str]]:
    """Returns the tags in the time index and the record of each unacknowledged message."""
    index: Any = server.zrange(f"{prefix}unacked_index", 0, -1)
    records: Any = server.hgetall(f"{prefix}unacked")
    return index, records


def test_a_message_is_noted_until_it_is_acknowledged(server: Redis, channel: Any, prefix: str) -> None:
    """A message is recorded under its tag with time and origin until it is acknowledged."""
    message = channel.basic_get(QUEUE)
    index, records = unacked(server, prefix)
    assert index == [message.delivery_tag] == list(records)
    raw, exchange, key = loads(records[message.delivery_tag])
    assert (raw["body"], exchange, key) == (message._raw["body"], "", QUEUE)
    channel.basic_ack(message.delivery_tag)
    assert unacked(server, prefix) == ([], {})


def test_what_is_noted_is_given_back(server: Redis, channel: Any, prefix: str) -> None:
    """Kombu restores recorded messages when the worker stops or the visibility timeout has passed."""
    tag = channel.basic_get(QUEUE).delivery_tag
    channel.qos.restore_unacked()
    assert unacked(server, prefix) == ([], {})
    assert channel.basic_get(QUEUE).delivery_tag == tag


def close_connections(server: Redis) -> None:
    """Makes the server close all other connections to this database."""
    for client in server.client_list():
        if client["db"] == str(DATABASE) and client["id"] != str(server.client_id()):
            server.client_kill_filter(_id=client["id"])


def test_a_lost_connection_loses_no_note(
    server: Redis, channel: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An acknowledgement opens a new connection after a lost one; a loss during the write raises, as in kombu."""
    message = channel.basic_get(QUEUE)
    close_connections(server)
    channel.basic_ack(message.delivery_tag)
    assert unacked(server, prefix) == ([], {})

    (connection,) = channel.qos.channel.pool._available_connections
    pack_commands, failures = connection.pack_commands, [1]

    def fail_once(commands: Any) -> Any:
        if failures and failures.pop():
            close_connections(server)
        return pack_commands(commands)

    monkeypatch.setattr(connection, "pack_commands", fail_once)
    with pytest.raises(channel.connection.client.connection_errors, match="closed by server"):
        channel.qos.append(message, message.delivery_tag)
    channel.qos.append(message, message.delivery_tag)
    assert unacked(server, prefix)[0] == [message.delivery_tag]


@pytest.mark.parametrize("prefix", [""], indirect=True)
def test_what_redis_refuses_is_an_error(server: Redis, channel: Any) -> None:
    """An error of Redis is raised as by redis-py, and later commands get their own replies."""
    message = channel.basic_get(QUEUE)
    server.delete("unacked")
    server.set("unacked", "a text")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        channel.basic_ack(message.delivery_tag)
    server.delete("unacked")
    channel.qos.append(message, message.delivery_tag)
    assert unacked(server, "")[0] == [message.delivery_tag]


@pytest.mark.parametrize("prefix", [""], indirect=True)
def test_a_pool_of_the_user_is_used(server: Redis, channel: Any) -> None:
    """A user's connection pool, such as a blocking one with a single connection, has it back after each command."""
    other = channel.connection.client.channel()
    other._pool = BlockingConnectionPool(db=DATABASE, max_connections=1, timeout=0.1)
    use_ack_pipeline(other)
    message = other.basic_get(QUEUE)
    assert unacked(server, "")[0] == [message.delivery_tag]
    other.basic_ack(message.delivery_tag)
    assert unacked(server, "") == ([], {})
