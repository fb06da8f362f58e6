"""The embedded broker's folder: whole messages, each to one reader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue
from kombu.exceptions import ChannelError

from nitro.infrastructure.offload.publishing.filesystem import Transport

Connect = Callable[[], Connection]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """Returns a function that opens connections to one folder, as processes would."""
    opened: list[Connection] = []
    options = {
        "data_folder_in": str(tmp_path),
        "data_folder_out": str(tmp_path),
        "control_folder": tmp_path / "control",
    }

    def connect() -> Connection:
        opened.append(Connection("filesystem://", transport=Transport, transport_options=options))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.release()


def take(connection: Connection, queue: str = "mail") -> Any:
    """Returns the next message's body, or None when the queue is empty."""
    try:
        return connection.default_channel._get(queue)
    except Empty:
        return None


def test_messages_come_in_the_order_they_were_put(connect: Connect) -> None:
    """Messages are taken first in, first out."""
    channel = connect().default_channel
    for number in range(3):
        channel._put("mail", {"number": number})
        threading.Event().wait(0.002)
    reader = connect()
    assert [take(reader)["number"] for _ in range(3)] == [0, 1, 2]
    assert take(reader) is None


def test_a_reader_never_sees_half_a_message(connect: Connect) -> None:
    """A message that is just being written is not there yet."""
    writing, go = threading.Event(), threading.Event()

    class Slow:
        def __json__(self) -> str:
            writing.set()
            go.wait(10)
            return "whole"

    writer, reader = connect().default_channel, connect()
    with ThreadPoolExecutor(1) as threads:
        written = threads.submit(writer._put, "mail", Slow())
        writing.wait(10)
        early = take(reader)
        go.set()
        written.result(10)
    assert (early, take(reader)) == (None, "whole")


def test_each_message_goes_to_one_reader(connect: Connect) -> None:
    """Concurrent readers never get the same message."""
    writer = connect().default_channel
    for number in range(200):
        writer._put("mail", number)
    readers = [connect() for _ in range(4)]
    for reader in readers:
        reader.default_channel  # connected here, so that the threads begin together

    def drain(reader: Connection) -> list[Any]:
        taken = []
        while (message := take(reader)) is not None:
            taken.append(message)
        return taken

    with ThreadPoolExecutor(4) as threads:
        taken = [number for numbers in threads.map(drain, readers) for number in numbers]
    assert sorted(taken) == list(range(200))


def test_nothing_is_left_behind(connect: Connect, tmp_path: Path) -> None:
    """A folder is empty after all of its messages were read."""
    connection = connect()
    connection.default_channel._put("mail", 1)
    assert take(connection) == 1
    assert [file for file in tmp_path.iterdir() if file.is_file()] == []


def test_queues_are_kept_apart(connect: Connect) -> None:
    """A queue whose name begins with another queue's name is separate."""
    connection = connect()
    connection.default_channel._put("mail.bulk", "bulk")
    assert take(connection, "mail") is None
    assert take(connection, "mail.bulk") == "bulk"


def test_a_fanout_reaches_every_queue_that_was_bound_at_once(connect: Connect) -> None:
    """Bindings that are made at the same time do not overwrite each other."""
    exchange = Exchange("news", type="fanout")
    connections = [connect() for _ in range(8)]
    together = threading.Barrier(len(connections))

    def bind(number: int) -> None:
        channel = connections[number].default_channel
        together.wait()
        Queue(f"reader{number}", exchange).bind(channel).declare()

    with ThreadPoolExecutor(len(connections)) as threads:
        list(threads.map(bind, range(len(connections))))
    with connect() as writer:
        writer.Producer().publish("extra", exchange=exchange)
        assert all(take(writer, f"reader{number}") for number in range(len(connections)))


def test_a_folder_that_cannot_be_written_is_an_error(connect: Connect, tmp_path: Path) -> None:
    """A message that cannot be written raises an error."""
    channel = connect().default_channel
    channel.data_folder_out = str(tmp_path / "missing")
    with pytest.raises(ChannelError, match="cannot write message"):
        channel._put("mail", 1)
