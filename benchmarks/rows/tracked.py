"""Tracked deliveries: what their rows cost the emitter, and how fast a relay moves them."""

from __future__ import annotations

from functools import partial
from time import perf_counter

from sqlalchemy import Engine, text

from benchmarks.measure import Pair, looped, side_by_side
from benchmarks.rows.publishing import app_on, empty_queue
from benchmarks.servers import database
from benchmarks.shop import KWARGS, dump, handlers, order
from benchmarks.table import row
from nitro import transaction
from nitro.infrastructure.database import create_tables
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox.relay import Relay

BACKLOG = 5_000
"""Rows that a relay moves in a round."""


def offloaded(count: int, delivery: str = "at-least-once") -> Event:
    """An event with so many offloaded handlers."""
    event = Event("bench")
    for handler in handlers(count):
        on(event, offload={"delivery": delivery}, name=f"bench.{handler.__name__}")(handler)
    return event


def _in_a_transaction(kind: str) -> Pair:
    app = app_on("redis")
    with database(kind) as place, empty_queue(app):
        bind(app, place)
        create_tables()
        event = offloaded(5)

        def saved() -> None:
            with transaction():
                order(0).save()

        def saved_and_emitted() -> None:
            with transaction():
                emit(event, order(0).save(), **KWARGS)

        pair = side_by_side(looped(saved_and_emitted), looped(saved), times=100)
        assert publisher.drain(60.0)
        return pair


for _kind, _goal in (("postgresql", 1.25), ("sqlite", 1.35)):
    row(
        f"transaction-{_kind}",
        9,
        f"a `transaction()` that saves an order and emits to 5, {_kind}",
        "the same without the emit",
        "sqlalchemy",
        _goal,
        needs=("redis", *(("postgresql",) if _kind == "postgresql" else ())),
    )(partial(_in_a_transaction, _kind))


def _relayed(broker: str) -> Pair:
    """Seconds a row: a quarter of them is four times as many rows a second."""
    app = app_on(broker)
    with database("postgresql") as place, empty_queue(app) as emptied:
        bind(app, place)
        create_tables()
        event, sold = offloaded(5), order()
        task = app.task(handlers(1)[0], name="plain")
        emit(event, sold, **KWARGS)
        assert publisher.drain(60.0)
        relay = Relay(app)

        def moved(times: int) -> float:
            emptied()
            fill(place, times // 5)
            began, left = perf_counter(), times
            while left:
                left -= relay.step()
            return perf_counter() - began

        def by_hand(times: int) -> float:
            emptied()
            return looped(lambda: task.delay(dump(sold), **KWARGS))(times)

        return side_by_side(moved, by_hand, times=BACKLOG, rounds=5)


def fill(place: Engine, count: int) -> None:
    """Have the deliveries of so many copies of the first emission wait on PostgreSQL, and none besides."""
    with place.begin() as connection:
        for statement in _COPIES:
            connection.execute(text(statement), {"emissions": count})


_COPIES = (
    "CREATE TABLE IF NOT EXISTS first AS SELECT * FROM nitro_delivery",
    "CREATE TABLE IF NOT EXISTS original AS SELECT * FROM nitro_emission",
    "DELETE FROM nitro_delivery",
    "DELETE FROM nitro_emission",
    """
    INSERT INTO nitro_emission (id, event, sender, root, snapshot)
    SELECT gen_random_uuid(), event, sender, root, snapshot FROM original, generate_series(1, :emissions)
    """,
    """
    INSERT INTO nitro_delivery (emission, handler, id, promise, mode, queue, state, due_at)
    SELECT nitro_emission.id, handler, gen_random_uuid(), promise, mode, queue, 'waiting', 0
    FROM first, nitro_emission
    """,
    "ANALYZE",
)


for _broker in ("redis", "rabbitmq"):
    row(
        f"relay-{_broker}",
        10,
        f"relay, PostgreSQL to {_broker}, seconds a row",
        "a loop of `.delay()`",
        "celery",
        0.25,
        needs=("postgresql", _broker),
    )(partial(_relayed, _broker))
