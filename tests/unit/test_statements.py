"""Cached statements do the same as SQLAlchemy's own execution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Executable,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    insert,
    literal,
    select,
    text,
)

from nitro.infrastructure.database import CachedStatement

goods = Table(
    "goods", MetaData(), Column("sku", String), Column("price", Float), Column("count", Integer), Column("tags", JSON)
)


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        goods.metadata.create_all(connection)
        yield connection
    engine.dispose()


def stored(connection: Connection) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(select(goods).order_by(goods.c.sku))]


def test_values_of_a_call_and_of_the_statement_get_where_they_belong(connection: Connection) -> None:
    """Values are bound by name in any order, and the statement is made once."""
    made: list[str] = []

    def make(dialect: str) -> Executable:
        made.append(dialect)
        price = literal(2, Float) * 2
        return insert(goods).values(count=bindparam("many"), price=price, sku=bindparam("named"), tags=None)

    statement = CachedStatement(make)
    for sku in ("a", "b"):
        assert statement.execute(connection, {"named": sku, "many": 3}).rowcount == 1
    assert stored(connection) == [("a", 4.0, 3, None), ("b", 4.0, 3, None)]
    assert made == ["sqlite"]


def test_what_it_returns_is_found_by_name(connection: Connection) -> None:
    statement = CachedStatement(lambda _dialect: insert(goods).values(sku=bindparam("named")).returning(goods.c.sku))
    assert statement.execute(connection, {"named": "a"}).one().sku == "a"


def test_a_value_that_a_type_has_to_write_is_written_by_it(connection: Connection) -> None:
    """The type converts both a parameter of the call and a value of the statement."""
    given = CachedStatement(lambda _dialect: insert(goods).values(sku="given", tags=bindparam("tagged", type_=JSON)))
    own = CachedStatement(lambda _dialect: insert(goods).values(sku=bindparam("named"), tags=["new"]))
    given.execute(connection, {"tagged": {"on": "sale"}})
    own.execute(connection, {"named": "own"})
    assert [row[3] for row in stored(connection)] == [{"on": "sale"}, ["new"]]


def test_a_list_is_spread(connection: Connection) -> None:
    """An expanding parameter takes a list, for `IN`."""
    connection.execute(insert(goods), [{"sku": sku} for sku in "abc"])
    statement = CachedStatement(
        lambda _dialect: select(goods.c.sku).where(goods.c.sku.in_(bindparam("some", expanding=True)))
    )
    assert sorted(statement.execute(connection, {"some": ["a", "c"]}).scalars()) == ["a", "c"]


def test_tables_are_where_the_engine_says(connection: Connection) -> None:
    """A `schema_translate_map` is obeyed, before and after the text was made."""
    statement = CachedStatement(lambda _dialect: insert(goods).values(sku=bindparam("named")))
    statement.execute(connection, {"named": "here"})
    connection.commit()
    connection.execute(text("ATTACH ':memory:' AS tenant"))
    connection.execute(text("CREATE TABLE tenant.goods (sku TEXT)"))
    there = connection.execution_options(schema_translate_map={None: "tenant"})
    statement.execute(there, {"named": "there"})
    assert there.execute(text("SELECT sku FROM tenant.goods")).scalars().all() == ["there"]
    assert there.execute(text("SELECT sku FROM main.goods")).scalars().all() == ["here"]
