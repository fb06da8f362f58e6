"""Acknowledgements on Redis: a worker records a message, and acknowledges it, in one transaction without a client.

kombu makes two clients and two pipelines for each message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from celery import Celery, bootsteps

from nitro.infrastructure.offload.publishing.redis import Command, reuse_client, send_commands


class AckPipeline:
    """A transaction of Redis commands for one message, sent in one round trip.

    It replaces a pipeline of redis-py, with the same retries. Each transaction takes a connection of the client's pool,
    because several threads of a worker acknowledge messages at a time.

    Args:
        client: a client of redis-py.
    """

    __slots__ = ("_add_prefix", "_commands", "_pool")

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self._add_prefix: Callable[[Command], Command] = getattr(client, "_prefix_args", tuple)
        self._commands: list[Command] = [("MULTI",)]

    def zadd(self, key: str, scores: Mapping[str, float]) -> AckPipeline:
        """Adds members to a sorted set."""
        return self._add("ZADD", key, *(part for member, score in scores.items() for part in (score, member)))

    def hset(self, key: str, field: str, value: str) -> AckPipeline:
        """Sets a field of a hash."""
        return self._add("HSET", key, field, value)

    def zrem(self, key: str, member: str) -> AckPipeline:
        """Removes a member from a sorted set."""
        return self._add("ZREM", key, member)

    def hdel(self, key: str, field: str) -> AckPipeline:
        """Removes a field from a hash."""
        return self._add("HDEL", key, field)

    def execute(self) -> None:
        """Sends the transaction, and reads the answers.

        Raises:
            RedisError: Redis has not executed it, or its answer was lost.
        """
        commands = [*self._commands, ("EXEC",)]
        connection = self._pool.get_connection()
        try:
            attempt = partial(_execute_transaction, connection, commands)
            connection.retry.call_with_retry(attempt, lambda _error: connection.disconnect())
        finally:
            self._pool.release(connection)

    def _add(self, *command: Any) -> AckPipeline:
        self._commands.append(self._add_prefix(command))
        return self


def _execute_transaction(connection: Any, commands: list[Command]) -> None:
    """Sends the commands and reads all answers; disconnects on an error, so that no answer stays unread."""
    try:
        send_commands(connection, commands)
        *_, answers = [connection.read_response() for _ in commands]
    except BaseException:
        connection.disconnect()
        raise
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def use_ack_pipeline(channel: Any) -> None:
    """Makes a channel on Redis use `AckPipeline`; does nothing for other channels."""
    own = reuse_client(channel)
    if own is None:
        return

    @contextmanager
    def pipe_or_acquire(pipe: Any = None, client: Any = None) -> Iterator[Any]:
        yield pipe or AckPipeline(client or own)

    channel.qos.pipe_or_acquire = pipe_or_acquire


class RedisAcksStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """A bootstep of the consumer that runs again for each connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Applies the pipeline before the first message; the consumer's loop starts after all steps."""
        use_ack_pipeline(consumer.task_consumer.channel)


def attach(app: Celery) -> None:
    """Adds the step to every worker of an app."""
    app.steps["consumer"].add(RedisAcksStep)
