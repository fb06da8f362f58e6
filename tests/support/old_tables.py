"""Tables of the outbox as in versions 1 to 3, which were never released."""

from __future__ import annotations

from sqlalchemy import Connection

_EMISSION = """
id VARCHAR(36) NOT NULL, event VARCHAR(512), sender TEXT NOT NULL, root VARCHAR(36), parent VARCHAR(36),
snapshot TEXT, reload TEXT, {since_3} PRIMARY KEY (id)
"""
_WORKER = "boot VARCHAR(36) NOT NULL, name VARCHAR(512) NOT NULL, beat BIGINT NOT NULL, PRIMARY KEY (boot)"
_DELIVERY = """
emission VARCHAR(36) NOT NULL, handler VARCHAR(512) NOT NULL, id VARCHAR(36) NOT NULL, promise VARCHAR(16) NOT NULL,
mode VARCHAR(8) NOT NULL, queue VARCHAR(512) NOT NULL, options TEXT, state VARCHAR(9) NOT NULL,
due_at {double} NOT NULL, expires_at {double}, attempts INTEGER DEFAULT '0' NOT NULL,
retries INTEGER DEFAULT '0' NOT NULL, losses INTEGER DEFAULT '0' NOT NULL, publications INTEGER DEFAULT '0' NOT NULL,
published_at {double}, started_at {double}, closed_at {double}, {since_3} worker VARCHAR(64), error TEXT,
PRIMARY KEY (emission, handler), FOREIGN KEY(emission) REFERENCES nitro_emission (id)
"""
_OPEN = {
    1: "(state, due_at) WHERE state IN ('waiting', 'queued', 'running')",
    2: "(state, due_at, emission) WHERE closed_at IS NULL",
    3: "(state, due_at, emission) WHERE closed_at IS NULL",
}
_SINCE_3 = (
    "CREATE INDEX ix_nitro_emission_root ON nitro_emission (root) WHERE root IS NOT NULL",
    "CREATE INDEX ix_nitro_delivery_dead ON nitro_delivery (emission) WHERE state = 'dead'",
    "CREATE INDEX ix_nitro_delivery_replayed ON nitro_delivery (replayed_at) WHERE replayed_at IS NOT NULL",
)
ROWS = (
    "INSERT INTO nitro_emission (id, event, sender) VALUES ('e1', 'order.placed', 'Order:o1')",
    """INSERT INTO nitro_delivery (emission, handler, id, promise, mode, queue, state, due_at)
    VALUES ('e1', 'shop.old', 'd1', 'at-least-once', 'snapshot', 'mail', 'dead', 0)""",
)
"""Statements that insert an emission with a delivery of an older version."""


def create(connection: Connection, version: int, *, numbered: bool = True) -> None:
    """Creates the tables of an older version, with one delivery.

    Args:
        numbered: whether nitro_schema has its row with the version, which tables made by hand lack.
    """
    on_server = connection.dialect.name == "postgresql"
    double, number = ("DOUBLE PRECISION", "SMALLSERIAL") if on_server else ("DOUBLE", "SMALLINT")
    later = version >= 3
    delivery = _DELIVERY.format(double=double, since_3="replayed_at FLOAT, history TEXT," if later else "")
    statements = [
        f"CREATE TABLE nitro_emission ({_EMISSION.format(since_3='story TEXT,' if later else '')})",
        f"CREATE TABLE nitro_worker ({_WORKER})",
        f"CREATE TABLE nitro_schema (version {number} NOT NULL, PRIMARY KEY (version))",
        f"CREATE TABLE nitro_delivery ({delivery})",
        f"CREATE INDEX ix_nitro_delivery_open ON nitro_delivery {_OPEN[version]}",
        *(_SINCE_3 if later else ()),
        *([f"INSERT INTO nitro_schema (version) VALUES ({version})"] if numbered else []),
        *ROWS,
    ]
    for statement in statements:
        connection.exec_driver_sql(statement)
