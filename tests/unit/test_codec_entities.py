"""The payload codec: table entities arrive as they were, clean, and know whether they were stored."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import JSON, Column, Engine, create_engine, event, inspect
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import attributes, defer, selectinload
from sqlalchemy.orm.collections import InstrumentedList
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import Field, Relationship, Session, SQLModel, select

from nitro.domain.entities.base_entity import Entity
from nitro.errors import EntityVanished, PayloadError, PayloadUnreadable
from nitro.infrastructure.offload.codec import decode, encode


class CodecOrder(Entity, table=True):
    email: str = ""
    total: float = 0.0
    data: dict[str, Any] = Field(default_factory=dict, sa_column=Column(MutableDict.as_mutable(JSON)))
    items: list["CodecItem"] = Relationship(back_populates="order")


class CodecItem(Entity, table=True):
    order_id: str | None = Field(default=None, foreign_key="codecorder.id")
    product: str = ""
    order: CodecOrder | None = Relationship(back_populates="items")


class CodecSeat(SQLModel, table=True):
    row: int = Field(primary_key=True)
    number: int = Field(primary_key=True)


class CodecDraft(Entity):
    title: str = ""


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A database of the test's own, in memory, with one order of two items."""
    engine = create_engine("sqlite://")
    SQLModel.metadata.create_all(engine, tables=[cls.__table__ for cls in (CodecOrder, CodecItem, CodecSeat)])
    with Session(engine) as session:
        session.add(order())
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
def queries(engine: Engine) -> list[str]:
    """The statements that reach the database from the fixture's start on."""
    seen: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda c, cursor, statement, *rest: seen.append(statement))
    return seen


def order() -> CodecOrder:
    """A new order with two items."""
    items = [CodecItem(id="i1", product="tea"), CodecItem(id="i2", product="cup")]
    return CodecOrder(id="o1", email="a@b", total=5, data={"k": [1]}, items=items)


def stored(engine: Engine, *options: Any) -> CodecOrder:
    """The order as read from the database, detached."""
    with Session(engine) as session:
        return session.exec(select(CodecOrder).options(*options)).one()


def carried(value: object, **options: Any) -> Any:
    """Returns the decoded value of a sender."""
    return decode(encode(value, (), {}), **options).sender


def columns(entity: SQLModel) -> dict[str, object]:
    """The loaded columns, in the order of their names."""
    return {name: vars(entity)[name] for name in sorted(vars(entity)) if name in inspect(type(entity)).column_attrs}


def test_columns_and_loaded_relationships_arrive(engine: Engine) -> None:
    """Columns and loaded relationships are there without a database, back references included."""
    sent = stored(engine, selectinload(CodecOrder.items).joinedload(CodecItem.order))
    arrived = carried(sent)
    assert columns(arrived) == columns(sent)
    assert isinstance(arrived.items, InstrumentedList)
    assert [columns(item) for item in arrived.items] == [columns(item) for item in sent.items]
    assert all(item.order is arrived for item in arrived.items)


def test_unloaded_stays_unloaded(engine: Engine, queries: list[str]) -> None:
    """A deferred column and a lazy relationship stay unloaded on both sides."""
    arrived = carried(stored(engine, defer(CodecOrder.email)))
    assert {"email", "items"} <= inspect(arrived).unloaded
    assert len(queries) == 1


def test_stored_entity_arrives_detached_and_clean(engine: Engine) -> None:
    """An entity that has a row arrives as detached and without changes."""
    arrived = carried(stored(engine, selectinload(CodecOrder.items)))
    assert inspect(arrived).detached
    assert not any(attribute.history.has_changes() for attribute in inspect(arrived).attrs)
    assert not inspect(arrived).modified


def test_new_entity_arrives_transient() -> None:
    """An entity that was never saved arrives as transient, with its relationships."""
    arrived = carried(order())
    assert inspect(arrived).transient
    assert [item.product for item in arrived.items] == ["tea", "cup"]


def test_new_entities_keep_their_links_on_insert(engine: Engine) -> None:
    """Transient entities that arrived get their foreign keys when they are stored."""
    sent = CodecOrder(id="o2", items=[CodecItem(id="i3")])
    with Session(engine) as session:
        session.add(carried(sent))
        session.commit()
        assert session.get_one(CodecItem, "i3").order_id == "o2"


def test_new_entity_without_a_link_keeps_its_foreign_key(engine: Engine) -> None:
    """A relationship that is None does not clear the column beside it on insert."""
    sent = CodecItem(id="i3", order_id="o1")
    attributes.set_committed_value(sent, "order", None)
    with Session(engine) as session:
        session.add(carried(sent))
        session.commit()
        assert session.get_one(CodecItem, "i3").order_id == "o1"


def test_save_in_the_worker_writes_only_what_changed(engine: Engine, queries: list[str]) -> None:
    """Adding the arrived entity to a session updates the changed column and no other."""
    arrived = carried(stored(engine, selectinload(CodecOrder.items)))
    arrived.total = 9
    queries.clear()
    with Session(engine) as session:
        session.add(arrived)
        session.commit()
    assert queries == ["UPDATE codecorder SET total=? WHERE codecorder.id = ?"]


def test_save_of_a_vanished_row_raises(engine: Engine) -> None:
    """A changed entity whose row was deleted in between cannot be stored."""
    arrived = carried(stored(engine))
    with Session(engine) as session:
        session.delete(session.get_one(CodecOrder, "o1"))
        session.commit()
    arrived.total = 9
    with Session(engine) as session, pytest.raises(StaleDataError):
        session.add(arrived)
        session.commit()


def test_tracked_json_arrives_tracked(engine: Engine) -> None:
    """A MutableDict column is one again, and a change inside it is noticed."""
    arrived = carried(stored(engine))
    assert type(arrived.data) is MutableDict
    arrived.data["k"] = 2
    assert attributes.get_history(arrived, "data").has_changes()


def test_expired_columns_of_an_attached_entity_are_read(engine: Engine) -> None:
    """Columns are read again after a commit; columns that were never loaded stay out."""
    with Session(engine) as session:
        sent = session.get_one(CodecOrder, "o1")
        session.commit()
        arrived = carried(sent)
    assert (arrived.email, arrived.data) == ("a@b", {"k": [1]})
    assert "items" in inspect(arrived).unloaded


def test_vanished_row_of_an_expired_entity_is_refused(engine: Engine) -> None:
    """An expired entity whose row is gone is an error that names it."""
    with Session(engine) as session, Session(engine) as other:
        sent = session.get_one(CodecOrder, "o1")
        session.commit()
        other.delete(other.get_one(CodecOrder, "o1"))
        other.commit()
        with pytest.raises(PayloadError, match=r"sender \(CodecOrder\).*refresh it"):
            encode(sent, (), {})


def test_fields_set_arrive() -> None:
    """The set of fields that the constructor was given survives."""
    assert carried(CodecItem(id="i", product="tea")).model_fields_set == {"id", "product"}


def test_one_entity_stays_one() -> None:
    """The same entity in sender, args and kwargs arrives as one object."""
    sent = order()
    payload = decode(encode(sent, (sent.items[0],), {"all": {sent: sent.items}}))
    ((key, items),) = payload.kwargs["all"].items()
    assert key is payload.sender
    assert items[0] is payload.args[0]
    assert payload.args[0].order is payload.sender


def test_collections_of_sqlalchemy_arrive_as_what_was_declared() -> None:
    """A relationship's list and a tracked dict, passed by themselves, arrive as a plain list and dict."""
    sent = order()
    items, data = carried([sent.items, sent.data])
    assert (type(items), type(items[0]), type(data), data) == (list, CodecItem, dict, {"k": [1]})


def test_composite_key_arrives(engine: Engine) -> None:
    """A table class that is no Entity and has two key columns arrives the same way."""
    with Session(engine) as session:
        session.add(sent := CodecSeat(row=1, number=2))
        session.commit()
        session.refresh(sent)
    assert inspect(carried(sent)).identity == (1, 2)


def test_column_removed_since_is_ignored() -> None:
    """A payload of an older class may have a column that no longer exists; the new one has its default."""
    assert columns(decode(encode(CodecItem(id="i"), (), {}).replace('"product"', '"gone"')).sender) == {
        "id": "i",
        "order_id": None,
        "product": "",
    }


def test_reload_sends_only_class_and_key(engine: Engine, queries: list[str]) -> None:
    """Reload mode sends class and key only, and reads nothing to find the key."""
    with Session(engine) as session:
        sent = session.get_one(CodecOrder, "o1")
        session.commit()
        queries.clear()
        text = encode(sent, (), {"seats": [CodecSeat(row=1, number=2)]}, entity="reload")
    asked: list[object] = []
    decode(text, load=lambda cls, key: asked.append((cls, key)) or cls())
    assert asked == [(CodecOrder, "o1"), (CodecSeat, (1, 2))]
    assert "a@b" not in text
    assert queries == []


def test_reload_puts_what_was_loaded_in_place() -> None:
    """An entity is loaded once and is put in all of its places, also inside a dataclass or a key."""
    sent, fresh = CodecItem(id="i"), CodecItem(id="i", product="new")
    payload = decode(encode(sent, ({sent: 1},), {"x": [sent]}, entity="reload"), load=lambda cls, key: fresh)
    assert payload.sender is fresh
    assert next(iter(payload.args[0])) is payload.kwargs["x"][0] is fresh


def test_reload_of_a_vanished_row_raises() -> None:
    """A `load` without a result raises EntityVanished."""
    with pytest.raises(EntityVanished, match="CodecItem 'i'"):
        decode(encode(CodecItem(id="i"), (), {}, entity="reload"), load=lambda cls, key: None)


def test_error_of_load_comes_through() -> None:
    """An error of the database is raised as it is, and not as a damaged payload."""

    def load(cls: type, key: object) -> object:
        raise ValueError("down")

    with pytest.raises(ValueError, match=r"^down$"):
        decode(encode(CodecItem(id="i"), (), {}, entity="reload"), load)


def test_reload_without_load_is_unreadable() -> None:
    """A payload to be reloaded needs a way to load."""
    with pytest.raises(PayloadUnreadable, match="no way to load"):
        decode(encode(CodecItem(id="i"), (), {}, entity="reload"))


@pytest.mark.parametrize(
    ("entity", "why"), [(CodecDraft(), "has no table"), (CodecSeat(row=1), "has no primary key yet")]
)
def test_reload_of_what_has_no_row_is_refused(entity: SQLModel, why: str) -> None:
    """An entity without table or key in reload mode is an error at encode."""
    with pytest.raises(PayloadError, match=rf"kwargs\['x'\]\[0\].*{why}"):
        encode(None, (), {"x": [entity]}, entity="reload")


def test_value_of_a_relationship_is_named_in_errors() -> None:
    """The error names a refused column by its path through the relationships."""
    sent = order()
    sent.items[1].product = object()
    with pytest.raises(PayloadError) as caught:
        encode(None, (sent,), {})
    assert caught.value.argument == "args[0].items[1].product"
