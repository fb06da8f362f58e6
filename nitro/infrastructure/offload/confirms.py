"""Confirms: RabbitMQ says of each message whether it has it; many are waited for at once."""

from __future__ import annotations

from time import monotonic
from typing import Any

from amqp.exceptions import MessageNacked  # type: ignore[import-untyped]  # no stubs


class Confirms:
    """The confirms of an AMQP channel, whose messages are told apart by their `correlation_id`.

    Attributes:
        confirmed: those that the broker has.
        returned: those that have reached no queue, with the error that says so.
        refused: those that the broker did not take, with the error that says so.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._published = 0
        self._open: dict[int, str] = {}
        self.begin()
        channel.confirm_select()
        self._publish, channel.basic_publish = channel.basic_publish, self._counted
        channel.events["basic_ack"].add(self._acked)
        channel.events["basic_nack"].add(self._nacked)
        channel.events["basic_return"].add(self._come_back)

    def begin(self) -> None:
        """Forget what became of earlier messages."""
        self.confirmed: set[str] = set()
        self.returned: dict[str, Exception] = {}
        self.refused: dict[str, Exception] = {}

    def wait(self, seconds: float) -> None:
        """Wait for those of all messages since the last wait.

        Raises:
            TimeoutError: not all have come within so many seconds.
            Exception: the channel or the connection has broken.
        """
        ends = monotonic() + seconds
        while self._open:
            left = ends - monotonic()
            if left <= 0:
                raise TimeoutError(f"the broker has not confirmed {len(self._open)} messages within {seconds:g} s")
            self._channel.connection.drain_events(timeout=left)

    def drop(self, count: int) -> None:
        """The last so many have never been sent."""
        for _ in range(count):
            del self._open[self._published]
            self._published -= 1

    def _counted(self, message: Any, *args: Any, **kwargs: Any) -> Any:
        self._published += 1
        self._open[self._published] = str(message.properties.get("correlation_id"))
        return self._publish(message, *args, **kwargs)

    def _acked(self, tag: int, multiple: bool) -> None:
        self.confirmed |= self._ended(tag, multiple) - self.returned.keys()

    def _nacked(self, tag: int, multiple: bool) -> None:
        self.refused |= dict.fromkeys(self._ended(tag, multiple), MessageNacked("the broker did not take it"))

    def _come_back(self, error: Exception, _exchange: str, _routing_key: str, message: Any) -> None:
        self.returned[str(message.properties.get("correlation_id"))] = error

    def _ended(self, tag: int, multiple: bool) -> set[str]:
        tags = [each for each in self._open if each == tag or (multiple and each < tag)]
        return {self._open.pop(each) for each in tags}
