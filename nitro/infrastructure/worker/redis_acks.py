"""Receiving: a worker on Redis notes and acknowledges each message in as few words as the server needs.

kombu makes two clients and two pipelines a message, each of which asks the pool for a connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from celery import Celery, bootsteps

from nitro.infrastructure.offload.publishing.redis import Command, IdleConnections, idle_connections_of, send_commands


class AckPipeline:
    """What kombu tells Redis of one message: a transaction, in one round trip.

    It stands where a pipeline of redis-py does, and tries again as often.
    """

    __slots__ = ("_commands", "_idle_connections")

    def __init__(self, idle: IdleConnections) -> None:
        self._idle_connections = idle
        self._commands: list[Command] = [("MULTI",)]

    def zadd(self, key: str, scores: Mapping[str, float]) -> AckPipeline:
        """Add members of a sorted set."""
        return self._add("ZADD", key, *(part for member, score in scores.items() for part in (score, member)))

    def hset(self, key: str, field: str, value: str) -> AckPipeline:
        """Set a field of a hash."""
        return self._add("HSET", key, field, value)

    def zrem(self, key: str, member: str) -> AckPipeline:
        """Remove a member of a sorted set."""
        return self._add("ZREM", key, member)

    def hdel(self, key: str, field: str) -> AckPipeline:
        """Remove a field of a hash."""
        return self._add("HDEL", key, field)

    def execute(self) -> None:
        """Have Redis execute it.

        Raises:
            RedisError: it has not, as far as anyone knows; what redis-py raises.
        """
        commands = [*self._commands, ("EXEC",)]
        connection = self._idle_connections.acquire()
        try:
            again = partial(_execute_transaction, connection, commands)
            connection.retry.call_with_retry(again, lambda _error: connection.disconnect())
        finally:
            self._idle_connections.release(connection)

    def _add(self, *command: Any) -> AckPipeline:
        self._commands.append(self._idle_connections.add_prefix(command))
        return self


def _execute_transaction(connection: Any, commands: list[Command]) -> None:
    """Say it and read what Redis answers to each; no answer is left for whoever speaks next."""
    try:
        send_commands(connection, commands)
        *_, executed = [connection.read_response() for _ in commands]
    except BaseException:
        connection.disconnect()
        raise
    for answer in executed:
        if isinstance(answer, Exception):
            raise answer


def use_ack_pipeline(channel: Any) -> None:
    """Have a channel on Redis take its notes so; any other is left as it is."""
    idle = idle_connections_of(channel)
    if idle is None:
        return

    @contextmanager
    def pipe_or_acquire(pipe: Any = None, client: Any = None) -> Iterator[Any]:  # noqa: ARG001  # kombu gives none
        yield pipe or AckPipeline(idle)

    channel.qos.pipe_or_acquire = pipe_or_acquire


class RedisAcksStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """A consumer's step that is taken again with each connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Before the first message: its loop begins after all steps."""
        use_ack_pipeline(consumer.task_consumer.channel)


def attach(app: Celery) -> None:
    """Have every worker of an app take this step."""
    app.steps["consumer"].add(RedisAcksStep)
