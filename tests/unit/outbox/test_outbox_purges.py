"""Concurrent purges delete each row once, and each counts its own deletions: contract section 10."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from celery import Celery
from sqlalchemy import func, select, update

from nitro.infrastructure.database import engine, write_connection
from nitro.infrastructure.events import Event, Namespace, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.outbox import retention
from nitro.infrastructure.outbox.schema import deliveries, emissions, now
from support.databases import KINDS, on_database

MANY = 60
PURGES = 3
FUTURE = datetime.now(UTC) + timedelta(days=1)
STATES = ("done", "published", "cancelled")


@pytest.fixture(params=KINDS)
def app_of_kind(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, make_app: Callable[..., Celery]
) -> Celery:
    """An app on a database of each kind."""
    on_database(request, monkeypatch, request.param)
    return bind(make_app())


def row_counts() -> tuple[int, int]:
    """Returns the numbers of deliveries and emissions."""
    with engine().connect() as connection:
        counts = [connection.scalar(select(func.count()).select_from(table)) or 0 for table in (deliveries, emissions)]
    return counts[0], counts[1]


def at_once(work: Callable[[], int]) -> list[int]:
    """Runs the function in several threads that start together, and returns the results."""
    begin = Barrier(PURGES)

    def call(_number: int) -> int:
        begin.wait()
        return work()

    with ThreadPoolExecutor(PURGES) as threads:
        return list(threads.map(call, range(PURGES)))


def all_of(purge: Callable[[], int]) -> Callable[[], int]:
    """Returns a function that purges until no row is left, and returns the number of deleted rows."""

    def work() -> int:
        return sum(iter(purge, 0))

    return work


def test_purges_side_by_side_share_what_there_is(app_of_kind: Celery, evt: Event) -> None:
    """The counts of concurrent purges add up to the number of rows, and every emission is deleted."""
    for name in ("shop.a", "shop.b"):
        on(evt, offload={"countdown": 3600}, name=name)(lambda sender: None)
    for _ in range(MANY):
        emit(evt)
    with write_connection() as connection:
        connection.execute(update(deliveries).values(state="done", closed_at=now()))
    deleted = at_once(all_of(lambda: retention.purge_deliveries(FUTURE, STATES, limit=7)))
    assert sum(deleted) == 2 * MANY
    assert row_counts() == (0, 0)


def test_the_journal_is_shared_too(app_of_kind: Celery) -> None:
    """Concurrent purges of the journal count each emission once."""
    event = Namespace().event("seen")
    on(event, offload={"countdown": 3600}, name="shop.a")(lambda sender: None)
    for _ in range(MANY):
        emit(event)
    with write_connection() as connection:
        connection.execute(deliveries.delete())
    assert sum(at_once(all_of(lambda: retention.purge_emissions(FUTURE, limit=7)))) == MANY
    assert row_counts() == (0, 0)


def test_a_purge_keeps_what_has_changed_meanwhile(app_of_kind: Celery, evt: Event) -> None:
    """A purge keeps open deliveries."""
    on(evt, offload={"countdown": 3600}, name="shop.a")(lambda sender: None)
    emit(evt)
    assert retention.purge_deliveries(FUTURE, STATES) == 0
    assert row_counts() == (1, 1)


@pytest.mark.parametrize(("states", "deleted"), [(("done",), 1), (("published",), 1), (("done", "published"), 2)])
def test_what_was_left_to_the_broker_is_a_state_of_its_own(
    app_of_kind: Celery, evt: Event, states: tuple[str, ...], deleted: int
) -> None:
    """An untracked delivery is `published` and not `done`, because the end of its handler is unknown."""
    on(evt, offload={"countdown": 3600}, name="shop.a")(lambda sender: None)
    on(evt, offload={"countdown": 3600}, name="shop.b")(lambda sender: None)
    emit(evt)
    with write_connection() as connection:
        connection.execute(update(deliveries).values(state="done", closed_at=now()))
        connection.execute(update(deliveries).where(deliveries.c.handler == "shop.b").values(promise="broker"))
    assert retention.purge_deliveries(FUTURE, states) == deleted
