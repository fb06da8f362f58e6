"""The behaviour of `class Order(Entity, table=True)`."""

# No `from __future__ import annotations`: SQLModel cannot resolve a relationship whose annotation is a string.

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError, field_validator
from sqlalchemy import Column, DateTime, delete, event, func, inspect, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import selectinload
from sqlmodel import Field, Relationship, Session, SQLModel, col, select

from nitro.domain.entities.base_entity import Entity
from nitro.errors import EntityVanished, InvalidEntity, NotATable, TransactionError
from nitro.infrastructure.database import engine, transaction


class EntTagging(SQLModel, table=True):
    """A row that gives an order a tag."""

    order_id: str = Field(foreign_key="entorder.id", primary_key=True)
    tag_id: str = Field(foreign_key="enttag.id", primary_key=True)


class EntTag(Entity, table=True):
    """A word for orders."""

    word: str
    orders: list["EntOrder"] = Relationship(back_populates="tags", link_model=EntTagging)


class EntOrder(Entity, table=True):
    """An order with lines."""

    customer_email: str
    total: float = 0.0
    status: str = "draft"
    number: int | None = Field(default=None, unique=True)
    created: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True), server_default=func.now()))
    changes: int | None = Field(default=None, sa_column_kwargs={"onupdate": func.abs(-7)})
    items: list["EntItem"] = Relationship(back_populates="order", sa_relationship_kwargs={"order_by": "EntItem.line"})
    notes: list["EntNote"] = Relationship(cascade_delete=True)
    tags: list[EntTag] = Relationship(back_populates="orders", link_model=EntTagging)

    @field_validator("customer_email")
    @classmethod
    def lowered(cls, given: str) -> str:
        """Validates that an address has an @, and returns it in lower case."""
        if "@" not in given:
            raise ValueError("an address has an @")
        return given.lower()


class EntItem(Entity, table=True):
    """A line of an order."""

    line: int
    order_id: str | None = Field(default=None, foreign_key="entorder.id")
    order: EntOrder | None = Relationship(back_populates="items")


class EntNote(Entity, table=True):
    """A note without a relationship back, deleted with its order."""

    body: str
    order_id: str | None = Field(default=None, foreign_key="entorder.id")


class EntDraft(Entity):
    """A model without a table."""

    total: float = 0.0


def order(**fields: object) -> EntOrder:
    """Returns a saved order, by default with an address."""
    return EntOrder.create(**{"customer_email": "a@b.c", **fields})


def elsewhere(change: object) -> None:
    """Changes rows in a separate transaction, unseen by instances."""
    with Session(engine()) as session:
        session.execute(change)  # type: ignore[call-overload]
        session.commit()


@pytest.fixture
def statements(database_each: str) -> list[str]:
    """The SQL that the engine sends, transaction control left out."""
    EntOrder.count()
    sent: list[str] = []

    @event.listens_for(engine(), "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            sent.append(statement)

    return sent


# id, equality, identity


def test_id_is_generated_when_absent_or_none() -> None:
    """The id is a UUIDv7 as text, also for a model without a table."""
    for made in (
        EntOrder(customer_email="a@b"),
        EntOrder(id=None, customer_email="a@b"),
        EntDraft(),
        EntDraft(id=None),
    ):
        assert len(made.id) == 36
        assert made.id[14] == "7"


def test_none_validates_to_a_generated_id() -> None:
    """`model_validate` of data without an id gives one, too."""
    assert EntTag.model_validate({"id": None, "word": "x"}).id


def test_given_id_is_kept() -> None:
    """An id of the caller is the primary key."""
    assert EntOrder(id="o1", customer_email="a@b").id == "o1"


def test_hash_is_by_class_and_id() -> None:
    """Instances of one row have one hash, instances of another class a different one."""
    assert hash(EntOrder(id="1", customer_email="a@b")) == hash(EntOrder(id="1", customer_email="c@d", total=3))
    assert hash(EntOrder(id="1", customer_email="a@b")) != hash(EntDraft(id="1"))


def test_equality_is_by_value(database_each: str) -> None:
    """Two copies of one row are equal, and hash alike, until a field differs."""
    first = order()
    second = EntOrder.get(first.id)
    assert second is not first
    assert second == first
    assert len({first, second}) == 1
    first.total = 5
    assert second != first


def test_identity_is_class_and_id() -> None:
    """The identity, by which events recognise a sender, is class and id."""
    assert EntOrder(id="1", customer_email="a@b").__nitro_identity__ == (EntOrder, "1")
    assert EntDraft(id="1").__nitro_identity__ == (EntDraft, "1")


def test_identity_needs_no_database(database: Path) -> None:
    """The identity is known without a database, even after a session has expired the instance."""
    made = order()
    with Session(engine()) as session:
        found = session.get_one(EntOrder, made.id)
        session.expire(found)
    elsewhere(delete(EntOrder))
    assert found.__nitro_identity__ == (EntOrder, made.id)
    assert hash(found) == hash(made)


def test_nothing_is_shown_without_opting_in() -> None:
    """Monitoring shows no field unless the class names it."""

    class EntShown(Entity):
        __nitro_show__: ClassVar[tuple[str, ...]] = ("total",)
        total: float = 0

    assert Entity.__nitro_show__ == ()
    assert "__nitro_show__" not in EntShown.model_fields


# save()


def test_save_inserts_and_returns_itself(database_each: str) -> None:
    """The instance stays readable, and detached."""
    made = EntOrder(customer_email="a@b.c", total=5)
    assert made.save() is made
    assert inspect(made).detached
    assert made.total == 5
    found = EntOrder.get(made.id)
    assert found is not None
    assert found.total == 5


def test_save_of_an_existing_id_updates_its_row(database_each: str) -> None:
    """A new instance with an id that exists overwrites the row, as in a script that runs twice."""
    order(id="o1", total=1, status="placed")
    order(id="o1", total=2)
    assert [(one.id, one.total, one.status) for one in EntOrder.all()] == [("o1", 2, "draft")]


def test_second_save_without_a_change_writes_nothing(statements: list[str]) -> None:
    """Saving again costs no statement."""
    made = order()
    statements.clear()
    made.save()
    assert statements == []


def test_generated_id_is_not_looked_up(statements: list[str]) -> None:
    """A generated id is inserted without a SELECT; a given id may exist already."""
    statements.clear()
    order()
    assert [statement.split()[0] for statement in statements] == ["INSERT"]


def test_save_writes_only_what_changed(database_each: str) -> None:
    """Columns that another session has written meanwhile stay."""
    made = order(total=1, status="draft")
    elsewhere(update(EntOrder).values(status="placed"))
    made.total = 2
    made.save()
    found = EntOrder.get(made.id)
    assert found is not None
    assert (found.total, found.status) == (2, "placed")


def test_save_of_a_vanished_row_raises(database_each: str) -> None:
    """An update that finds no row is an error, and the instance keeps its unsaved value."""
    made = order()
    elsewhere(delete(EntOrder))
    made.total = 9
    with pytest.raises(EntityVanished, match=r"EntOrder .*save"):
        made.save()
    assert made.total == 9


def test_database_default_is_readable(database_each: str) -> None:
    """A value that only the database knows is there after `save()`."""
    assert isinstance(order().created, datetime)


def test_database_default_survives_an_overwrite(database_each: str) -> None:
    """None in a column that the database fills means that it was not given."""
    first = order(id="o1").created
    assert order(id="o1").created == first is not None


def test_onupdate_value_is_readable(database_each: str) -> None:
    """A value that the update computes is there after `save()`."""
    made = order()
    made.total = 1
    assert made.save().changes == 7


def test_failed_save_keeps_values_and_changes(database_each: str) -> None:
    """The instance is unchanged after a broken constraint, and a corrected one saves everything."""
    order(number=1)
    made = order(number=2)
    made.number, made.status = 1, "placed"
    with pytest.raises(IntegrityError):
        made.save()
    assert (made.number, made.status, made.customer_email) == (1, "placed", "a@b.c")
    made.number = 3
    made.save()
    found = EntOrder.get(made.id)
    assert found is not None
    assert (found.number, found.status) == (3, "placed")


def test_failed_first_save_can_be_repeated(database_each: str) -> None:
    """A new instance stays new when its insert fails."""
    order(number=1)
    made = EntOrder(customer_email="a@b", number=1)
    with pytest.raises(IntegrityError):
        made.save()
    made.number = 2
    made.save()
    assert EntOrder.exists(made.id)


def test_save_in_another_process_is_seen(database: Path) -> None:
    """A separate process saves the same user twice, and this process sees one row."""
    script = (
        "from nitro.domain.entities.base_entity import Entity\n"
        "class EntUser(Entity, table=True):\n    email: str\n"
        "EntUser(id='u1', email='alice@example.com').save().save()\n"
        "print(EntUser.count(), EntUser.get('u1').email)"
    )
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
        assert ran.stdout == "1 alice@example.com\n"


@pytest.mark.parametrize("call", ["save", "delete", "refresh"])
def test_instance_method_without_a_table(call: str) -> None:
    """The error says that the class has no table."""
    with pytest.raises(NotATable, match=rf"EntDraft\.{call}\(\) .*table=True"):
        getattr(EntDraft(), call)()


def test_model_without_a_table_validates_its_constructor() -> None:
    """A class without `table=True` is a plain pydantic model."""
    with pytest.raises(ValidationError):
        EntDraft(total="much")


# Validation


def test_bad_value_is_not_saved(database_each: str) -> None:
    """The error names the field, nothing is written and the instance is unchanged."""
    made = EntOrder(customer_email="a@b", total="much")  # type: ignore[arg-type]
    with pytest.raises(InvalidEntity, match="EntOrder was not saved: total: "):
        made.save()
    assert made.total == "much"  # type: ignore[comparison-overlap]
    assert EntOrder.count() == 0


def test_validators_of_the_class_run(database_each: str) -> None:
    """The return value of a validator is saved and set on the instance."""
    assert order(customer_email="A@B.C").customer_email == "a@b.c"
    with pytest.raises(InvalidEntity, match="an address has an @"):
        order(customer_email="nobody")


def test_values_are_coerced(database_each: str) -> None:
    """A value is converted as in a pydantic constructor."""
    assert order(total="5").total == 5.0


def test_changes_are_validated(database_each: str) -> None:
    """A changed stored instance is validated, and its row stays as it was."""
    made = order()
    made.total = "much"  # type: ignore[assignment]
    with pytest.raises(InvalidEntity):
        made.save()
    assert EntOrder.count(col(EntOrder.total) == 0) == 1


def test_bad_value_in_a_transaction_is_not_committed(database_each: str) -> None:
    """Swallowing the error does not let the commit write the value."""
    with transaction():
        made = order()
        made.total = "much"  # type: ignore[assignment]
        with pytest.raises(InvalidEntity):
            made.save()
    found = EntOrder.get(made.id)
    assert found is not None
    assert found.total == 0


def test_related_new_objects_are_validated(database_each: str) -> None:
    """A related object with a bad value keeps the whole save from being written."""
    with pytest.raises(InvalidEntity, match="EntItem was not saved: line"):
        order(items=[EntItem(line="first")])  # type: ignore[arg-type]
    assert EntOrder.count() == 0


# Related objects


def test_related_new_objects_are_saved_too(database_each: str) -> None:
    """An order and its items are one save; they have their foreign keys."""
    made = order(items=[EntItem(line=1), EntItem(line=2)])
    assert EntItem.count(col(EntItem.order_id) == made.id) == 2
    assert [item.line for item in made.items] == [1, 2]


def test_object_added_later_is_saved_too(database_each: str) -> None:
    """A related object is saved with an order that was read, even if only one side declares the relationship."""
    made = EntOrder.get(order(items=[EntItem(line=1)]).id)
    assert made is not None
    made.items.append(EntItem(line=2))
    made.notes.append(EntNote(body="fast"))
    made.save().save()
    assert EntItem.count(col(EntItem.order_id) == made.id) == 2
    assert EntNote.count(col(EntNote.order_id) == made.id) == 1


def test_order_with_items_is_saved_twice(database_each: str) -> None:
    """Saving the same ids again, as a repeated script does, writes changes and doubles nothing."""
    for line in (1, 2):
        order(id="o1", items=[EntItem(id="i1", line=line)], notes=[EntNote(id="n1", body="x")])
    assert [(item.id, item.line, item.order_id) for item in EntItem.all()] == [("i1", 2, "o1")]
    assert [(note.id, note.order_id) for note in EntNote.all()] == [("n1", "o1")]


def test_new_object_joins_an_existing_order(database_each: str) -> None:
    """An order built anew with an id that exists gives its new objects their foreign key."""
    order(id="o1")
    order(id="o1", notes=[EntNote(body="one side only")])
    assert [note.order_id for note in EntNote.all()] == ["o1"]


def test_overwritten_item_gets_its_order(database_each: str) -> None:
    """An item that overwrites its row gets the order of its own relationship."""
    EntItem.create(id="i1", line=1)
    made = EntItem.create(id="i1", line=1, order=EntOrder(customer_email="a@b"))
    assert made.order is not None
    assert made.order_id == made.order.id


def test_relationship_of_a_detached_order_loads(database_each: str) -> None:
    """`order.items` never raises, loaded beforehand or not, and both sides know each other."""
    found = EntOrder.get(order(items=[EntItem(line=2), EntItem(line=1)]).id)
    assert found is not None
    assert inspect(found).detached
    assert [item.line for item in found.items] == [1, 2]
    assert all(item.order is found for item in found.items)
    assert inspect(found).detached


def test_relationship_to_one_loads(database_each: str) -> None:
    """A relationship to one loads, and so does the relationship back."""
    made = order(items=[EntItem(line=1)])
    item = EntItem.get(made.items[0].id)
    assert item is not None
    assert item.order is not None
    assert item.order == made
    assert [one.line for one in item.order.items] == [1]


def test_relationship_follows_a_changed_foreign_key(database_each: str) -> None:
    """The item leads to the order of its foreign key after `save()`, not to the order that it had loaded."""
    item = order(items=[EntItem(line=1)]).items[0]
    other = order()
    item.order_id = other.id
    item.save()
    assert item.order == other


def test_relationship_to_nothing_needs_no_query(statements: list[str]) -> None:
    """A foreign key that is None gives None without a query."""
    item = EntItem.create(line=1)
    found = EntItem.get(item.id)
    statements.clear()
    assert found is not None
    assert found.order is None
    assert statements == []


def test_relationship_of_a_new_order_is_empty() -> None:
    """A new order without a row has empty relationships."""
    assert EntOrder(customer_email="a@b").items == []


def test_many_to_many_loads_and_saves(database_each: str) -> None:
    """A relationship over a link table loads and saves from both sides."""
    made = order(tags=[EntTag(word="b")])
    found = EntTag.find_by(word="b")
    assert found is not None
    assert found.orders == [made]
    assert [tag.word for tag in found.orders[0].tags] == ["b"]


def test_relationship_loads_in_other_threads(database_each: str) -> None:
    """Threads may read the same detached order at the same moment."""
    found = EntOrder.get(order(items=[EntItem(line=1)]).id)
    assert found is not None
    together = threading.Barrier(4)

    def lines(_: int) -> list[int]:
        together.wait(30)
        return [item.line for item in found.items]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lines, range(4))) == [[1]] * 4


def test_relationship_sees_the_open_transaction(database_each: str) -> None:
    """A detached order finds items that are not committed yet."""
    made = order()
    found = EntOrder.get(made.id)
    assert found is not None
    with transaction():
        EntItem.create(line=7, order_id=made.id)
        assert [item.line for item in found.items] == [7]


def test_class_level_relationships_still_work(database_each: str) -> None:
    """The class shows SQLAlchemy's own attribute in conditions, joins and eager loading."""
    order(items=[EntItem(line=1)])
    order()
    assert len(EntOrder.where(EntOrder.items.any(EntItem.line == 1))) == 1  # type: ignore[attr-defined]
    with Session(engine()) as session:
        assert len(session.exec(select(EntOrder).join(EntOrder.items)).all()) == 1  # type: ignore[arg-type]
        eager = session.exec(select(EntOrder).options(selectinload(EntOrder.items))).all()  # type: ignore[arg-type]
    assert sorted(len(found.__dict__["items"]) for found in eager) == [0, 1]
    assert "items" in inspect(EntOrder).all_orm_descriptors


def test_second_copy_in_reach_does_not_break_save(database_each: str) -> None:
    """An item whose order leads back to another copy of the item can be saved."""
    made = order(items=[EntItem(line=1)])
    item = EntItem.get(made.items[0].id)
    assert item is not None
    assert item.order is not None
    assert item.order.items[0] is not item
    item.line = 5
    item.save()
    assert [one.line for one in EntItem.all()] == [5]
    assert item.order.items[0] is item


def test_copy_held_by_the_transaction_does_not_break_save(database_each: str) -> None:
    """The changes of both copies are written."""
    mine = EntOrder.get(order(items=[EntItem(line=1)]).id)
    assert mine is not None
    assert mine.items[0].line == 1
    with transaction():
        theirs = EntOrder.get(mine.id)
        assert theirs is not None
        theirs.status = "placed"
        theirs.save()
        mine.total = 3
        mine.save()
    found = EntOrder.get(mine.id)
    assert found is not None
    assert (found.status, found.total) == ("placed", 3)


# In a transaction, and in sessions of the user's own


def test_save_joins_the_transaction(database_each: str) -> None:
    """The save is part of the transaction: reads inside see the row, and a rollback removes it."""
    with pytest.raises(ZeroDivisionError), transaction():
        made = order()
        assert not inspect(made).detached
        assert EntOrder.count() == 1
        raise ZeroDivisionError
    assert EntOrder.count() == 0


def test_entity_is_readable_after_a_rollback(database_each: str) -> None:
    """A new entity keeps its values and can be saved again; a stored one shows its row."""
    stored = order(total=1)
    with pytest.raises(ZeroDivisionError), transaction():
        made = order(total=2)
        stored.total = 3
        stored.save()
        raise ZeroDivisionError
    assert (made.total, stored.total) == (2, 1)
    made.save()
    assert EntOrder.exists(made.id)


def test_save_in_a_rolled_back_inner_block_is_gone_alone(database_each: str) -> None:
    """A failed inner block undoes inner saves only."""
    with transaction():
        kept = order()
        with pytest.raises(ZeroDivisionError), transaction():
            order()
            raise ZeroDivisionError
    assert [one.id for one in EntOrder.all()] == [kept.id]


def test_broken_constraint_in_an_inner_block(database_each: str) -> None:
    """The error is caught outside of the inner block, and the rest is committed."""
    with transaction():
        order(number=1)
        with pytest.raises(IntegrityError), transaction():
            order(number=1)
        order(number=2)
    assert EntOrder.count() == 2


def test_entity_in_a_session_of_the_users_own(database_each: str) -> None:
    """`save()` flushes in the user's session, and the user's commit decides."""
    made = order()
    with Session(engine()) as session:
        mine = session.get_one(EntOrder, made.id)
        mine.total = 4
        mine.save()
        assert mine in session
        assert EntOrder.count(col(EntOrder.total) == 4) == 0
        session.commit()
    assert EntOrder.count(col(EntOrder.total) == 4) == 1


def test_new_entity_follows_a_related_one_into_its_session(database_each: str) -> None:
    """An item of an order that is attached to a user's session is saved in that session."""
    made = order()
    with Session(engine()) as session:
        EntItem(line=1, order=session.get_one(EntOrder, made.id)).save()
        session.rollback()
    assert EntItem.count() == 0


def test_entity_in_an_async_session(database: Path) -> None:
    """`save()` cannot await: it checks the values, and the commit of the session writes them."""
    pytest.importorskip("aiosqlite")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    made = order()

    async def change() -> None:
        own = create_async_engine(f"sqlite+aiosqlite:///{database}")
        async with AsyncSession(own) as session:
            mine = await session.get_one(EntOrder, made.id)
            mine.total = 4
            mine.save()
            await session.commit()
            async with transaction(session):
                order(id="new")
            with pytest.raises(TransactionError, match="run_sync"):
                async with transaction(session):
                    EntOrder.delete_where(EntOrder.total == 4)
            async with transaction(session):
                await session.run_sync(lambda _: order(id="waited"))
        await own.dispose()

    asyncio.run(change())
    assert [one.total for one in EntOrder.all()] == [4, 0, 0]


def test_expired_entity_of_a_closed_session_is_readable(database_each: str) -> None:
    """Instances that a session expired at its commit load themselves."""
    with Session(engine()) as session:
        mine = EntOrder(customer_email="a@b", total=4)
        session.add(mine)
        session.commit()
    assert mine.total == 4


def test_expired_entity_whose_row_is_gone_says_so(database_each: str) -> None:
    """An expired entity without a row raises an error when it is read."""
    with Session(engine()) as session:
        mine = EntOrder(customer_email="a@b", total=4)
        session.add(mine)
        session.commit()
    elsewhere(delete(EntOrder))
    with pytest.raises(EntityVanished):
        _ = mine.total


# delete() and refresh()


def test_delete_removes_the_row(database_each: str) -> None:
    """`save()` afterwards inserts it again."""
    made = order()
    made.delete()
    assert not EntOrder.exists(made.id)
    made.save()
    assert EntOrder.exists(made.id)


def test_delete_of_what_is_not_there(database_each: str) -> None:
    """Deleting a never saved or an already deleted entity does nothing."""
    EntOrder(customer_email="a@b").delete()
    made = order()
    made.delete()
    made.delete()
    assert EntOrder.count() == 0


def test_delete_by_id_alone(database_each: str) -> None:
    """A new instance with an id that exists deletes that row."""
    order(id="o1")
    EntOrder(id="o1", customer_email="a@b").delete()
    assert EntOrder.count() == 0


def test_delete_cascades_where_the_class_says_so(database_each: str) -> None:
    """Notes are deleted with their order, and items stay; saving again inserts both."""
    made = order(items=[EntItem(line=1)], notes=[EntNote(body="x")])
    made.delete()
    assert [item.order_id for item in EntItem.all()] == [None]
    assert EntNote.count() == 0
    made.save()
    assert [note.order_id for note in EntNote.all()] == [made.id]


def test_delete_in_a_transaction_and_save_again(database_each: str) -> None:
    """An entity can be deleted and saved again in one transaction."""
    made = order()
    with transaction():
        made.delete()
        assert EntOrder.get(made.id) is None
        made.save()
    assert EntOrder.exists(made.id)


def test_rolled_back_delete_has_not_happened(database_each: str) -> None:
    """The row is back, and `save()` finds it."""
    made = order()
    with pytest.raises(ZeroDivisionError), transaction():
        made.delete()
        raise ZeroDivisionError
    made.total = 6
    made.save()
    assert [one.total for one in EntOrder.all()] == [6]


def test_delete_in_a_session_of_the_users_own(database_each: str) -> None:
    """The user's commit decides."""
    made = order()
    with Session(engine()) as session:
        session.get_one(EntOrder, made.id).delete()
        assert EntOrder.exists(made.id)
        session.commit()
    assert not EntOrder.exists(made.id)


def test_refresh_takes_the_values_of_the_row(database_each: str) -> None:
    """Unsaved changes are dropped, loaded relationships are read anew."""
    made = order(items=[EntItem(line=1)])
    elsewhere(update(EntOrder).values(status="placed"))
    elsewhere(update(EntItem).values(line=9))
    elsewhere(update(EntItem).values(order_id=None))
    made.total = 99
    assert made.refresh() is made
    assert (made.status, made.total, made.items) == ("placed", 0, [])


def test_refreshed_entity_has_nothing_to_save(statements: list[str]) -> None:
    """A refreshed entity has the values of its row, and no changes."""
    made = order()
    made.total = 99
    made.refresh()
    statements.clear()
    made.save()
    assert statements == []


def test_refresh_of_a_vanished_row_raises(database_each: str) -> None:
    """A refresh without a row raises, detached or in a transaction."""
    made = order()
    elsewhere(delete(EntOrder))
    with pytest.raises(EntityVanished):
        made.refresh()
    with transaction():
        mine = order()
        EntOrder.delete_where(EntOrder.id == mine.id)
        with pytest.raises(EntityVanished):
            mine.refresh()
