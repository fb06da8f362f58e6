"""SQLite in processes that fork while other threads use it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from nitro.infrastructure.database import engine, write_connection

pytestmark = pytest.mark.usefixtures("database")

TRIES = 5


def in_a_child(act: object) -> int:
    """Runs the function in a forked child; returns the exit code, 0 unless the function raises."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def write() -> None:
    """Writes a row, with a short timeout for a lock that is never released."""
    with engine().connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=500")
        connection.execute(text("INSERT INTO seen VALUES (1)"))
        connection.commit()


@pytest.fixture
def table() -> None:
    """A table to write into."""
    with write_connection() as connection:
        connection.exec_driver_sql("CREATE TABLE seen (number INTEGER)")


def test_a_child_can_write_although_a_thread_was_writing_at_the_fork(table: None, database: Path) -> None:
    """The fork waits for the other thread's transaction, because SQLite's locks in memory are not inherited."""
    codes = []
    for _ in range(TRIES):
        inside = threading.Event()

        def hold(inside: threading.Event = inside) -> None:
            with write_connection() as connection:
                connection.exec_driver_sql("INSERT INTO seen VALUES (0)")
                inside.set()
                forking.wait(0.2)  # the fork has begun, as far as it can without this transaction's end

        forking = threading.Event()
        holder = threading.Thread(target=hold)
        holder.start()
        assert inside.wait(5)
        codes.append(in_a_child(write))
        holder.join()
    assert codes == [0] * TRIES
    with engine().connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM seen")) == 2 * TRIES


def test_parent_and_child_go_on(table: None) -> None:
    """Parent and child write after the fork, and so does the thread that waited for the fork."""
    write()
    assert in_a_child(write) == 0
    write()
    with engine().connect() as connection:
        assert connection.scalar(text("SELECT sum(number) FROM seen")) == 3


def test_a_fork_inside_a_transaction_of_its_own_thread_does_not_hang(table: None) -> None:
    """The fork waits only for transactions of other threads."""
    with write_connection() as connection:
        connection.exec_driver_sql("INSERT INTO seen VALUES (0)")
        assert in_a_child(lambda: None) == 0
