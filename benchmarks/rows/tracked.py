"""Tracked deliveries: the cost of their rows for the emitter, and the speed of a relay."""

from __future__ import annotations

from functools import partial
from time import perf_counter

from sqlalchemy import Engine, text

from benchmarks.measure import Pair, repeat, side_by_side
from benchmarks.rows.publishing import app_on, empty_queue
from benchmarks.servers import database
from benchmarks.shop import KWARGS, dump, handlers, order
from benchmarks.table import register_row
from nitro import transaction
from nitro.infrastructure.database import create_tables
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox.relay import Relay

RELAYED_ROWS = 5_000
"""Rows that a relay publishes in a round."""


def offloaded(count: int, delivery: str = "at-least-once") -> Event:
    """Returns an event with this number of offloaded handlers."""
    event = Event("bench")
    for handler in handlers(count):
        on(event, offload={"delivery": delivery}, name=f"bench.{handler.__name__}")(handler)
    return event


def _in_a_transaction(kind: str) -> Pair:
    app = app_on("redis")
    with database(kind) as engine, empty_queue(app):
        bind(app, engine)
        create_tables()
        event = offloaded(5)

        def save() -> None:
            with transaction():
                order(0).save()

        def save_and_emit() -> None:
            with transaction():
                emit(event, order(0).save(), **KWARGS)

        pair = side_by_side(repeat(save_and_emit), repeat(save), times=100)
        assert publisher.drain(60.0)
        return pair


for _kind, _goal in (("postgresql", 1.25), ("sqlite", 1.35)):
    register_row(
        f"transaction-{_kind}",
        9,
        f"a `transaction()` that saves an order and emits to 5, {_kind}",
        "the same without the emit",
        "sqlalchemy",
        _goal,
        needs=("redis", *(("postgresql",) if _kind == "postgresql" else ())),
    )(partial(_in_a_transaction, _kind))


def _relayed(broker: str) -> Pair:
    """Measures the seconds for one row: the goal of a quarter is four times as many rows a second."""
    app = app_on(broker)
    with database("postgresql") as engine, empty_queue(app) as purge:
        bind(app, engine)
        create_tables()
        event, sender = offloaded(5), order()
        task = app.task(handlers(1)[0], name="plain")
        emit(event, sender, **KWARGS)
        assert publisher.drain(60.0)
        relay = Relay(app)

        def relay_all(times: int) -> float:
            purge()
            copy_emissions(engine, times // 5)
            start, remaining = perf_counter(), times
            while remaining:
                remaining -= relay.step()
            return perf_counter() - start

        def by_hand(times: int) -> float:
            purge()
            return repeat(lambda: task.delay(dump(sender), **KWARGS))(times)

        return side_by_side(relay_all, by_hand, times=RELAYED_ROWS, rounds=5)


def copy_emissions(engine: Engine, count: int) -> None:
    """Replaces all rows on PostgreSQL by this number of copies of the first emission, with waiting deliveries."""
    with engine.begin() as connection:
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
    register_row(
        f"relay-{_broker}",
        10,
        f"relay, PostgreSQL to {_broker}, seconds a row",
        "a loop of `.delay()`",
        "celery",
        0.25,
        needs=("postgresql", _broker),
    )(partial(_relayed, _broker))
