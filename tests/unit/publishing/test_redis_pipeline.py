"""The kept connection to a real Redis: closed by the server, with a new password, in a forked child."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from redis import ConnectionPool, Redis
from redis.connection import Connection

from nitro.infrastructure.offload.publishing import redis
from nitro.infrastructure.offload.publishing.redis import RENEWAL_SECONDS, RedisPipeline
from support.brokers import DATABASE, on_server

pytestmark = pytest.mark.server

KEY = f"nitro-pipeline-{os.getpid()}"


@pytest.fixture
def server() -> Iterator[Redis]:
    """A real Redis without the list."""
    on_server("redis")
    with Redis(db=DATABASE, decode_responses=True) as server:
        server.delete(KEY)
        yield server
        server.delete(KEY)


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def pool(request: pytest.FixtureRequest) -> Iterator[ConnectionPool]:
    """A pool that is limited to a single connection."""
    pool = ConnectionPool(db=DATABASE, protocol=request.param, max_connections=1)
    yield pool
    pool.disconnect()


@pytest.fixture
def pipeline(server: Redis, pool: ConnectionPool) -> RedisPipeline:
    """A pipeline that has published a message and keeps its connection."""
    pipeline = RedisPipeline(Redis(connection_pool=pool))
    push(pipeline, "first")
    assert pipeline.is_open
    return pipeline


def push(pipeline: RedisPipeline, value: str, patience: float | None = None) -> None:
    """Publishes a message."""
    pipeline.add("lpush", KEY, value)
    pipeline.flush(patience)


def pushed(server: Redis) -> Any:
    """Returns all messages, the first one first."""
    return list(reversed(server.lrange(KEY, 0, -1)))  # type: ignore[arg-type]  # not awaitable


def close_connections(server: Redis) -> None:
    """Makes the server close all other connections to this database."""
    for client in server.client_list():
        if client["db"] == str(DATABASE) and client["id"] != str(server.client_id()):
            server.client_kill_filter(_id=client["id"])


def test_a_connection_that_the_server_has_closed_is_replaced(server: Redis, pipeline: RedisPipeline) -> None:
    """The pipeline notices a closed connection before it sends, so that no error is raised."""
    close_connections(server)
    assert not pipeline.is_open
    push(pipeline, "second")
    assert pushed(server) == ["first", "second"]


class Token:
    """A password that a credential provider has renewed; a server without passwords accepts any."""

    def try_get(self, key: str) -> str:
        return {"oid": "default"}[key]

    def get_value(self) -> str:
        return "renewed"


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_a_new_password_is_sent_between_two_batches(
    server: Redis, pool: ConnectionPool, pipeline: RedisPipeline, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is no batch's answer; it is sent once, also when the server has closed the connection meanwhile."""
    sent, send = list[Any](), Connection.send_command

    def record_and_send(self: Any, *args: Any, **kwargs: Any) -> None:
        sent.append(args[0])
        send(self, *args, **kwargs)

    monkeypatch.setattr(Connection, "send_command", record_and_send)
    pool.re_auth_callback(Token())  # type: ignore[arg-type]  # has all that is used of a token
    push(pipeline, "second", patience=5.0)
    assert "AUTH" not in sent
    if closed:
        close_connections(server)
    now = redis.monotonic()
    monkeypatch.setattr(redis, "monotonic", lambda: now + RENEWAL_SECONDS)
    for value in ("third", "fourth"):
        assert pipeline.is_open == (value == "fourth")
        push(pipeline, value)
    assert sent.count("AUTH") == 1
    assert pushed(server) == ["first", "second", "third", "fourth"]


def test_a_forked_child_has_a_connection_of_its_own(server: Redis, pipeline: RedisPipeline) -> None:
    """The parent's connection stays usable after the child has published and ended."""
    child = os.fork()
    if child == 0:
        try:
            assert not pipeline.is_open
            push(pipeline, "of the child")
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert pipeline.is_open
    push(pipeline, "second", patience=5.0)
    assert pushed(server) == ["first", "of the child", "second"]
