"""What the layers below cost by themselves, beside the same peers: nothing that stands on them can be cheaper."""

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

from benchmarks import once
from benchmarks.measure import ROUNDS, Pair, looped, side_by_side
from benchmarks.rows.publishing import BROKERS, app_on, empty_queue
from benchmarks.rows.tracked import offloaded
from benchmarks.servers import QUEUE, database
from benchmarks.shop import KWARGS, dump, handlers, order
from benchmarks.table import row
from nitro import transaction
from nitro.infrastructure.database import create_tables, engine
from nitro.infrastructure.events import emit
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.codec import encode
from nitro.infrastructure.outbox import claims, inserts
from nitro.infrastructure.worker.identity import runner_id

BYTES = "x" * 2_700
"""As many as one message has."""
ONCE = 300


def _published(broker: str) -> Pair:
    app, sold = app_on(broker), order()
    task = app.task(handlers(1)[0], name="plain")
    with empty_queue(app), app.connection_for_write() as connection:
        channel = connection.default_channel
        bare = partial(_push, Redis.from_url(BROKERS[broker])) if broker == "redis" else partial(_publish, channel)
        return side_by_side(looped(bare), looped(lambda: task.delay(dump(sold), **KWARGS)), times=200)


def _push(client: Redis) -> None:
    connection = client.connection_pool.get_connection()
    connection.send_packed_command(connection.pack_command("LPUSH", QUEUE, BYTES))
    connection.read_response()
    client.connection_pool.release(connection)


def _publish(channel: Any) -> None:
    message = channel.prepare_message(BYTES, content_type="application/json", content_encoding="utf-8")
    channel.basic_publish(message, exchange="", routing_key=QUEUE)


for _broker, _bare in (("redis", "one LPUSH of redis-py"), ("rabbitmq", "one `basic_publish` of py-amqp")):
    row(f"floor-{_broker}", 7, f"{_bare}, as long as a message", "1 `.delay()`", "celery", None, needs=(_broker,))(
        partial(_published, _broker)
    )


def _in_a_transaction(kind: str, insert: Callable[[Connection, str], object]) -> Pair:
    app = app_on("memory")
    with database(kind) as place:
        bind(app, place)
        create_tables()
        payload = encode(order(0), (), KWARGS)
        with place.begin() as connection:
            connection.execute(CreateTable(_PAYLOADS))

        def saved() -> None:
            with transaction():
                order(0).save()

        def saved_and_inserted() -> None:
            with transaction() as session:
                order(0).save()
                insert(session.connection(), payload)

        return side_by_side(looped(saved_and_inserted), looped(saved), times=100)


_PAYLOADS = Table("payload", MetaData(), Column("id", String(36), primary_key=True), Column("payload", Text))
_ONE = _PAYLOADS.insert()


def _insert_one(connection: Connection, payload: str) -> None:
    """The least that an outbox can do."""
    connection.execute(_ONE, {"id": str(uuid7()), "payload": payload})


def _insert(connection: Connection, payload: str) -> None:
    """The statements of an emit to five, and nothing else of it."""
    emission = str(uuid7())
    facts = {"promise": "at-least-once", "mode": "snapshot", "queue": QUEUE, "state": "queued", "publications": 1}
    own = {"at_once": True, "put_off": 10.0, "ends_at": None, "ends_after": None, "options": None}
    rows = [
        {"emission": emission, "handler": f"bench.handler{number}", "id": str(uuid4()), **facts, **own}
        for number in range(5)
    ]
    values = {"id": emission, "event": "bench", "sender": "Order", "snapshot": payload, "rows": json.dumps(rows)}
    values |= dict.fromkeys(("root", "parent", "story", "reload"))
    for statement in inserts.INSERT_STATEMENTS[connection.dialect.name]:
        statement.execute(connection, values)


for _name, _what, _inserting in (
    ("floor-row", "INSERTs one row with the payload", _insert_one),
    ("floor-transaction", "executes the INSERTs of an emit to 5", _insert),
):
    for _kind in ("postgresql", "sqlite"):
        row(
            f"{_name}-{_kind}",
            9,
            f"a `transaction()` that saves an order and {_what}, {_kind}",
            "the same without",
            "sqlalchemy",
            None,
            needs=("postgresql",) if _kind == "postgresql" else (),
        )(partial(_in_a_transaction, _kind, _inserting))


@row(
    "floor-once",
    12,
    "the statements of an `exactly-once` run on PostgreSQL, without Celery",
    "those that are made by hand",
    "sqlalchemy",
    None,
    needs=("postgresql",),
)
def exactly_once() -> Pair:
    """A claim and a close; counting the attempt and taking a key."""
    with database("postgresql") as place:
        os.environ["NITRO_DB_URL"] = place.url.render_as_string(hide_password=False)  # as of a worker
        bind(app_on("memory"))
        create_tables()
        event, (handler,) = offloaded(1, "exactly-once"), handlers(1)
        keys = list(map(str, range((ROUNDS + 1) * ONCE)))
        emissions = [emit(event, order(), **KWARGS).id for _ in keys]
        with engine().begin() as connection:
            once.create(connection)
            once.expect(connection, keys)
        ours = _claimed_and_closed(f"bench.{handler.__name__}", emissions)
        left = iter(keys)
        pair = side_by_side(looped(ours), looped(lambda: once.run(engine(), next(left), bool)), times=ONCE)
        engine().dispose()
        return pair


def _claimed_and_closed(handler: str, emissions: list[str]) -> Callable[[], None]:
    left, me = iter(emissions), runner_id()

    def run() -> None:
        claim = claims.claim(next(left), handler, me)
        assert isinstance(claim, claims.Claim)
        with transaction() as session:
            claims.finish(claim, session.connection())

    return run
