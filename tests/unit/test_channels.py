"""A batch on Redis: which commands come of the messages in it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
from kombu.exceptions import BatchPublishError

from nitro.infrastructure.offload.channels import Pushes, keep_client


class Client:
    """Notes commands, those of a pipeline in a list of their own; fails when it is told to."""

    def __init__(self) -> None:
        self.executed: list[Any] = []
        self.error: Exception | None = None

    def lpush(self, *args: Any) -> None:
        self._execute(("lpush", *args))

    @contextmanager
    def pipeline(self, transaction: bool) -> Any:
        assert not transaction
        yield Pipeline(self)

    def _execute(self, what: Any) -> None:
        if self.error is not None:
            raise self.error
        self.executed.append(what)


class Pipeline:
    """What `Client.pipeline` gives."""

    def __init__(self, client: Client) -> None:
        self._client, self._commands = client, list[Any]()

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self._commands.append((name, *args))

    def execute(self) -> None:
        self._client._execute(self._commands)


class Channel:
    """Turns a message into the commands that it is."""

    def basic_publish(self, message: Any, *, _publish_batch: Pushes, **how: Any) -> None:
        for command in message:
            _publish_batch.add(*command)


@pytest.fixture
def client() -> Client:
    return Client()


def published(client: Client, *messages: Any, most: int = 1000) -> Pushes:
    """A batch with these messages, flushed."""
    batch = Pushes(Channel(), client, most)
    for message in messages:
        batch.publish(message)
    batch.flush()
    return batch


def test_messages_of_one_list_are_one_command(client: Client) -> None:
    """In their order."""
    published(client, [("lpush", "q", "1")], [("lpush", "q", "2")], [("lpush", "q", "3")])
    assert client.executed == [("lpush", "q", "1", "2", "3")]


def test_lists_are_kept_apart_and_in_order(client: Client) -> None:
    """In one pipeline; a queue that expires is prolonged after each of its messages."""
    expiring = [("lpush", "b", "2"), ("pexpire", "b", 9)]
    published(client, [("lpush", "a", "1")], expiring, [("publish", "topic", "x")], [("lpush", "a", "3")])
    assert client.executed == [
        [("lpush", "a", "1"), ("lpush", "b", "2"), ("pexpire", "b", 9), ("publish", "topic", "x"), ("lpush", "a", "3")]
    ]


def test_nothing_is_executed_for_nothing(client: Client) -> None:
    """Nor for what was discarded."""
    batch = published(client)
    batch.publish([("lpush", "q", "1")])
    batch.discard()
    batch.flush()
    assert client.executed == []


def test_a_full_batch_is_flushed(client: Client) -> None:
    """When it has gathered more than it may."""
    published(client, *([("lpush", "q", str(number))] for number in range(5)), most=2)
    assert client.executed == [("lpush", "q", "0", "1", "2"), ("lpush", "q", "3", "4")]


@pytest.mark.parametrize("keys", [["q", "q"], ["q", "other"]], ids=["command", "pipeline"])
def test_a_failure_is_one_of_the_batch(client: Client, keys: list[str]) -> None:
    """With its cause; nothing is executed again."""
    client.error = OSError("gone")
    batch = Pushes(Channel(), client, 1000)
    for key in keys:
        batch.publish([("lpush", key, "1")])
    with pytest.raises(BatchPublishError) as caught:
        batch.flush()
    assert caught.value.__cause__ is client.error
    client.error = None
    batch.flush()
    assert client.executed == []


class Acquiring:
    """A channel that makes a client for whoever has none, as kombu's does."""

    def __init__(self) -> None:
        self.made = 0

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Any:
        self.made += client is None
        yield client or f"client {self.made}"


def test_a_kept_client_is_given_to_whoever_brings_none() -> None:
    """And nobody's own is exchanged for it."""
    channel = Acquiring()
    assert keep_client(channel) == "client 1"
    for given, got in ((None, "client 1"), ("own", "own"), (None, "client 1")):
        with channel.conn_or_acquire(given) as client:
            assert client == got
    with channel.conn_or_acquire() as client:
        assert client == "client 1"
    assert channel.made == 1


def test_a_channel_without_clients_is_left_alone() -> None:
    """Such as one on RabbitMQ."""
    assert keep_client(object()) is None
