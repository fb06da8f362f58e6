"""Floors: the cost of the layers below Nitro alone, beside the same peers. No row above can be cheaper."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

from redis import Redis
from sqlalchemy import Column, Connection, MetaData, String, Table, Text
from sqlalchemy.schema import CreateTable
from uuid_utils import uuid7

from benchmarks import exactly_once_by_hand
from benchmarks.measure import ROUNDS, Pair, repeat, side_by_side
from benchmarks.rows.publishing import BROKERS, app_on, empty_queue
from benchmarks.rows.tracked import offloaded
from benchmarks.servers import QUEUE, database
from benchmarks.shop import KWARGS, dump, handlers, order
from benchmarks.table import register_row
from nitro import transaction
from nitro.infrastructure.database import create_tables, engine
from nitro.infrastructure.events import emit
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.codec import encode
from nitro.infrastructure.outbox import claims, inserts
from nitro.infrastructure.worker.identity import runner_id

MESSAGE_TEXT = "x" * 2_700
"""A text as long as one message."""
RUNS_A_ROUND = 300


def _published(broker: str) -> Pair:
    app, sender = app_on(broker), order()
    task = app.task(handlers(1)[0], name="plain")
    with empty_queue(app), app.connection_for_write() as connection:
        channel = connection.default_channel
        publish = partial(_push, Redis.from_url(BROKERS[broker])) if broker == "redis" else partial(_publish, channel)
        return side_by_side(repeat(publish), repeat(lambda: task.delay(dump(sender), **KWARGS)), times=200)


def _push(client: Redis) -> None:
    connection = client.connection_pool.get_connection()
    connection.send_packed_command(connection.pack_command("LPUSH", QUEUE, MESSAGE_TEXT))
    connection.read_response()
    client.connection_pool.release(connection)


def _publish(channel: Any) -> None:
    message = channel.prepare_message(MESSAGE_TEXT, content_type="application/json", content_encoding="utf-8")
    channel.basic_publish(message, exchange="", routing_key=QUEUE)


for _broker, _what in (("redis", "one LPUSH of redis-py"), ("rabbitmq", "one `basic_publish` of py-amqp")):
    register_row(
        f"floor-{_broker}", 7, f"{_what}, as long as a message", "1 `.delay()`", "celery", None, needs=(_broker,)
    )(partial(_published, _broker))


def _in_a_transaction(kind: str, insert: Callable[[Connection, str], object]) -> Pair:
    app = app_on("memory")
    with database(kind) as bench_engine:
        bind(app, bench_engine)
        create_tables()
        payload = encode(order(0), (), KWARGS)
        with bench_engine.begin() as connection:
            connection.execute(CreateTable(_PAYLOADS))

        def save() -> None:
            with transaction():
                order(0).save()

        def save_and_insert() -> None:
            with transaction() as session:
                order(0).save()
                insert(session.connection(), payload)

        return side_by_side(repeat(save_and_insert), repeat(save), times=100)


_PAYLOADS = Table("payload", MetaData(), Column("id", String(36), primary_key=True), Column("payload", Text))
_INSERT_PAYLOAD = _PAYLOADS.insert()


def _insert_payload(connection: Connection, payload: str) -> None:
    """Inserts one row with the payload: the least that an outbox can do."""
    connection.execute(_INSERT_PAYLOAD, {"id": str(uuid7()), "payload": payload})


def _insert_emission(connection: Connection, payload: str) -> None:
    """Executes the INSERTs of an emit to five handlers, and nothing else of it."""
    emission = str(uuid7())
    shared = {"promise": "at-least-once", "mode": "snapshot", "queue": QUEUE, "state": "queued", "publications": 1}
    timing = {"at_once": True, "put_off": 10.0, "ends_at": None, "ends_after": None, "options": None}
    rows = [
        {"emission": emission, "handler": f"bench.handler{number}", "id": str(uuid4()), **shared, **timing}
        for number in range(5)
    ]
    values = {"id": emission, "event": "bench", "sender": "Order", "snapshot": payload, "rows": json.dumps(rows)}
    values |= dict.fromkeys(("root", "parent", "story", "reload"))
    for statement in inserts.INSERT_STATEMENTS[connection.dialect.name]:
        statement.execute(connection, values)


for _name, _what, _insert in (
    ("floor-row", "INSERTs one row with the payload", _insert_payload),
    ("floor-transaction", "executes the INSERTs of an emit to 5", _insert_emission),
):
    for _kind in ("postgresql", "sqlite"):
        register_row(
            f"{_name}-{_kind}",
            9,
            f"a `transaction()` that saves an order and {_what}, {_kind}",
            "the same without",
            "sqlalchemy",
            None,
            needs=("postgresql",) if _kind == "postgresql" else (),
        )(partial(_in_a_transaction, _kind, _insert))


@register_row(
    "floor-once",
    12,
    "the statements of an `exactly-once` run on PostgreSQL, without Celery",
    "those that are made by hand",
    "sqlalchemy",
    None,
    needs=("postgresql",),
)
def exactly_once() -> Pair:
    """Measures a claim and a close; the peer counts the attempt and takes a key."""
    with database("postgresql") as bench_engine:
        os.environ["NITRO_DB_URL"] = bench_engine.url.render_as_string(hide_password=False)  # as in a worker
        bind(app_on("memory"))
        create_tables()
        event, (handler,) = offloaded(1, "exactly-once"), handlers(1)
        keys = list(map(str, range((ROUNDS + 1) * RUNS_A_ROUND)))
        emissions = [emit(event, order(), **KWARGS).id for _ in keys]
        with engine().begin() as connection:
            exactly_once_by_hand.create_tables(connection)
            exactly_once_by_hand.insert_keys(connection, keys)
        claim_and_close = _claim_and_close_next(f"bench.{handler.__name__}", emissions)
        remaining_keys = iter(keys)

        def run_by_hand() -> None:
            exactly_once_by_hand.run_once(engine(), next(remaining_keys), bool)

        pair = side_by_side(repeat(claim_and_close), repeat(run_by_hand), times=RUNS_A_ROUND)
        engine().dispose()
        return pair


def _claim_and_close_next(handler: str, emissions: list[str]) -> Callable[[], None]:
    remaining, runner = iter(emissions), runner_id()

    def run() -> None:
        claim = claims.claim(next(remaining), handler, runner)
        assert isinstance(claim, claims.Claim)
        with transaction() as session:
            claims.finish(claim, session.connection())

    return run
