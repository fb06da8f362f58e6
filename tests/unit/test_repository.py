"""Entities that are found, counted and deleted by condition."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import true
from sqlmodel import Field, col

from nitro.domain.entities.base_entity import Entity
from nitro.errors import EntityError, NotACondition, NotATable, UnknownField
from nitro.infrastructure.database import create_tables, transaction


class RepBook(Entity, table=True):
    """A book on a shelf."""

    title: str
    subtitle: str | None = None
    price: float = 0.0
    shelf_id: str | None = Field(default=None, foreign_key="repshelf.id")


class RepShelf(Entity, table=True):
    """A shelf."""

    name: str


class RepSketch(Entity):
    """A model without a table."""


@pytest.fixture
def books(database_each: str) -> list[RepBook]:
    """Three books, in the order of their ids."""
    return [
        RepBook.create(id="b1", title="Emma", price=5),
        RepBook.create(id="b2", title="Äpfel 100%", subtitle="a_b", price=7),
        RepBook.create(id="b3", title="emma again", price=5),
    ]


def ids(found: list[RepBook]) -> list[str]:
    return [book.id for book in found]


def test_create_saves(database_each: str) -> None:
    """`create` returns the stored instance."""
    assert RepBook.create(title="x").title == "x"
    assert RepBook.count() == 1


@pytest.mark.parametrize("call", [RepBook.get, RepBook.find])
def test_get_and_find(books: list[RepBook], call: type[RepBook]) -> None:
    """`get` and `find` return the entity, or None for a missing id."""
    assert call("b1") == books[0]
    assert call("nowhere") is None
    assert call(None) is None


def test_exists(books: list[RepBook]) -> None:
    """`exists` says whether there is a row."""
    assert RepBook.exists("b1")
    assert not RepBook.exists("nowhere")


def test_all_comes_in_the_order_of_ids(books: list[RepBook]) -> None:
    """Generated ids sort by creation, so the order of ids is the order of creation."""
    assert RepBook.all() == books


def test_count(books: list[RepBook]) -> None:
    """`count` counts all rows, or the rows that meet the conditions."""
    assert RepBook.count() == 3
    assert RepBook.count(col(RepBook.price) == 5, RepBook.title == "Emma") == 1


def test_where_meets_all_conditions(books: list[RepBook]) -> None:
    """Rows must meet all conditions."""
    assert ids(RepBook.where(RepBook.price == 5, col(RepBook.title).startswith("e"))) == ["b3"] or ids(
        RepBook.where(RepBook.price == 5, col(RepBook.title).like("e%"))
    ) == ["b1", "b3"]
    assert ids(RepBook.where()) == ["b1", "b2", "b3"]


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [
        ("price", ["b1", "b3", "b2"]),
        ("-price", ["b2", "b1", "b3"]),
        (col(RepBook.price), ["b1", "b3", "b2"]),
        (col(RepBook.price).desc(), ["b2", "b1", "b3"]),
        (["price", "-id"], ["b3", "b1", "b2"]),
    ],
)
def test_order_by(books: list[RepBook], order_by: object, expected: list[str]) -> None:
    """Rows are ordered by a name, a name with a minus, a column, its `desc()`, or a list; then by id."""
    assert ids(RepBook.where(order_by=order_by)) == expected
    assert ids(RepBook.filter(order_by=order_by)) == expected


def test_limit_and_offset(books: list[RepBook]) -> None:
    """`limit` and `offset` cut a page out of the result, each alone as well."""
    assert ids(RepBook.where(limit=2)) == ["b1", "b2"]
    assert ids(RepBook.where(offset=2)) == ["b3"]
    assert ids(RepBook.filter(limit=1, offset=1)) == ["b2"]


def test_find_by(books: list[RepBook]) -> None:
    """`find_by` returns the first match, or None."""
    found = RepBook.find_by(price=5)
    assert found is not None
    assert found.id == "b1"
    assert RepBook.find_by(price=5, title="nowhere") is None


def test_filter_by_equality(books: list[RepBook]) -> None:
    """Rows must equal all given values."""
    assert ids(RepBook.filter(price=5, title="Emma")) == ["b1"]
    assert ids(RepBook.filter(subtitle=None)) == ["b1", "b3"]


@pytest.mark.parametrize("kind", [list, tuple, set])
def test_filter_by_several_values(books: list[RepBook], kind: type) -> None:
    """A list, tuple or set matches any of its values, None included."""
    assert ids(RepBook.filter(id=kind(["b1", "b3", "b9"]))) == ["b1", "b3"]
    assert ids(RepBook.filter(subtitle=kind(["a_b", None]))) == ["b1", "b2", "b3"]
    assert RepBook.filter(id=kind([])) == []


def test_filter_takes_conditions_too(books: list[RepBook]) -> None:
    """Conditions and fields can be combined."""
    assert ids(RepBook.filter(col(RepBook.title).contains("again"), price=5)) == ["b3"]


def test_unknown_field_is_named_with_the_nearest(books: list[RepBook]) -> None:
    """An unknown field is an error in filters, searches and orders, with the nearest name."""
    for ask in (
        lambda: RepBook.filter(titel="x"),
        lambda: RepBook.find_by(titel="x"),
        lambda: RepBook.where(order_by="-titel"),
        lambda: RepBook.search("x", fields=["titel"]),
    ):
        with pytest.raises(UnknownField, match="RepBook has no field 'titel'; did you mean 'title'"):
            ask()


def test_search_ignores_case(books: list[RepBook]) -> None:
    """Search ignores the case of non-ASCII letters too."""
    assert ids(RepBook.search("EMMA")) == ["b1", "b3"]
    assert ids(RepBook.search("äPFEL")) == ["b2"]


def test_search_looks_into_every_text_field_but_keys(books: list[RepBook]) -> None:
    """Keys are not searched, because generated ids would match by accident."""
    assert ids(RepBook.search("a_")) == ["b2"]
    assert RepBook.search("b1") == []


def test_search_in_named_fields(books: list[RepBook]) -> None:
    """A key is searched if it is named."""
    assert ids(RepBook.search("b1", fields=["id"])) == ["b1"]
    assert RepBook.search("emma", fields=["subtitle"]) == []


def test_search_takes_wildcards_literally(books: list[RepBook]) -> None:
    """`%` and `_` are ordinary characters."""
    assert ids(RepBook.search("%")) == ["b2"]
    assert RepBook.search("m_a") == []


def test_search_pages(books: list[RepBook]) -> None:
    """Search has order, limit and offset."""
    assert ids(RepBook.search("emma", order_by="-id", limit=1)) == ["b3"]
    assert ids(RepBook.search("emma", offset=1)) == ["b3"]


def test_search_without_text_fields_finds_nothing(database: Path) -> None:
    """A class without text fields has no search results."""

    class RepNumber(Entity, table=True):
        value: int

    RepNumber.create(value=1)
    assert RepNumber.search("") == []


def test_delete_where(books: list[RepBook]) -> None:
    """`delete_where` deletes matching rows and returns their number."""
    assert RepBook.delete_where(RepBook.price == 5) == 2
    assert ids(RepBook.all()) == ["b2"]


def test_delete_where_needs_a_condition(books: list[RepBook]) -> None:
    """The error names the condition that deletes every row."""
    with pytest.raises(NotACondition, match=r"sqlalchemy\.true\(\)"):
        RepBook.delete_where()
    assert RepBook.delete_where(true()) == 3


@pytest.mark.parametrize("call", [RepBook.delete_where, RepBook.where, RepBook.count, RepBook.filter])
def test_python_bool_is_no_condition(books: list[RepBook], call: type[RepBook]) -> None:
    """A Python bool, such as `Book.price is not None`, is an error: it would select every row."""
    with pytest.raises(NotACondition, match="True"):
        call(RepBook.price is not None)
    assert RepBook.count() == 3


def test_delete_where_joins_the_transaction(books: list[RepBook]) -> None:
    """A rollback brings the rows back."""
    with pytest.raises(ZeroDivisionError), transaction():
        RepBook.delete_where(true())
        assert RepBook.all() == []
        raise ZeroDivisionError
    assert RepBook.count() == 3


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("create", ()),
        ("get", ("1",)),
        ("find", ("1",)),
        ("exists", ("1",)),
        ("all", ()),
        ("count", ()),
        ("where", ()),
        ("find_by", ()),
        ("filter", ()),
        ("search", ("x",)),
        ("delete_where", (true(),)),
    ],
)
def test_class_method_without_a_table(call: str, arguments: tuple[object, ...]) -> None:
    """A query of a class without a table is an error that says so."""
    with pytest.raises(NotATable, match=r"RepSketch\.\w+\(\) needs a table"):
        getattr(RepSketch, call)(*arguments)


def test_errors_are_entity_errors() -> None:
    """EntityError catches every error of entities."""
    assert issubclass(UnknownField, EntityError)
    assert issubclass(NotACondition, EntityError)


def test_init_db_may_run_again(database_each: str) -> None:
    """`init_db` creates missing tables and leaves existing ones."""
    RepShelf.create(name="top")
    RepShelf.init_db()
    create_tables()
    assert RepShelf.count() == 1
