"""An entity arrives with its values at the emit, and never with later ones: contract section 5."""

import asyncio
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine, ForeignKey, create_engine, func, inspect, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    MappedAsDataclass,
    Session,
    column_property,
    load_only,
    mapped_column,
    relationship,
)
from sqlmodel import Field, Relationship, SQLModel

from nitro.domain.entities.base_entity import Entity
from nitro.errors import NotLoaded, NotSaved, PayloadError
from nitro.infrastructure import database
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, emit, on

Sent = Callable[..., list[Any]]
Work = Callable[..., Any]


class LoadedOrder(Entity, table=True):
    name: str = ""
    notes: str = ""
    made: datetime | None = Field(default=None, sa_column_kwargs={"server_default": func.now()})
    items: list["LoadedItem"] = Relationship(
        sa_relationship=relationship("LoadedItem", back_populates="order", lazy="dynamic")
    )
    lines: list["LoadedItem"] = Relationship(sa_relationship=relationship("LoadedItem", viewonly=True))


class LoadedItem(Entity, table=True):
    sku: str = ""
    order_id: str | None = Field(default=None, foreign_key="loadedorder.id")
    order: LoadedOrder | None = Relationship(sa_relationship=relationship("LoadedOrder", back_populates="items"))


class LoadedPlain(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = ""
    notes: str = ""


class Base(DeclarativeBase): ...


class LoadedRow(Base):
    __tablename__ = "loaded_row"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str] = mapped_column(default="")
    blob: Mapped[str] = mapped_column(default="big", deferred=True)
    parts: Mapped[list["LoadedPart"]] = relationship(back_populates="row")
    questions: DynamicMapped["LoadedPart"] = relationship(viewonly=True)

    @hybrid_property
    def shout(self) -> str:
        return self.name.upper()


class LoadedPart(Base):
    __tablename__ = "loaded_part"
    id: Mapped[int] = mapped_column(primary_key=True)
    row_id: Mapped[int | None] = mapped_column(ForeignKey("loaded_row.id"))
    row: Mapped[LoadedRow | None] = relationship(back_populates="parts")


LoadedRow.shouted = column_property(LoadedRow.__table__.c.name + "!")  # type: ignore[attr-defined]  # mapped later


class DataBase(MappedAsDataclass, DeclarativeBase): ...


class LoadedData(DataBase):
    __tablename__ = "loaded_data"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str] = mapped_column(default="")


MODELS: list[Any] = [
    pytest.param(lambda: LoadedOrder(id="1", name="then", notes="then"), id="Entity"),
    pytest.param(lambda: LoadedPlain(id=1, name="then", notes="then"), id="SQLModel"),
    pytest.param(lambda: LoadedRow(id=1, name="then", notes="then"), id="declarative"),
    pytest.param(lambda: LoadedData(id=1, name="then", notes="then"), id="dataclass"),
]


@pytest.fixture
def engine(app: Celery) -> Iterator[Engine]:
    """A user's engine on the database with the outbox, with all tables."""
    database.create_tables()
    engine = create_engine(database.engine().url)
    for base in (Base, DataBase):
        base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def heard(evt: Event, app: Celery) -> Event:
    """The event, with an offloaded handler that does nothing."""
    on(evt, offload={"delivery": "broker"}, name="shop.mail")(lambda sender, **kwargs: None)
    return evt


def change_row(engine: Engine, entity: Any) -> None:
    """Changes the row in another transaction."""
    with engine.begin() as connection:
        connection.execute(update(type(entity)).values(name="later", notes="later"))


def arrived(sent: Sent) -> Any:
    """Returns the sender as the handler would get it."""
    (message,) = sent()
    return message.payload.sender


@pytest.mark.parametrize("make", MODELS)
def test_expired_and_attached(make: Any, heard: Event, engine: Engine, sent: Sent) -> None:
    """Columns that a commit expired are read in the entity's session."""
    with Session(engine) as session:
        session.add(entity := make())
        session.commit()
        emit(heard, entity)
    change_row(engine, entity)
    sender = arrived(sent)
    assert (sender.name, sender.notes) == ("then", "then")


@pytest.mark.parametrize("ending", ["close", "expunge"])
@pytest.mark.parametrize("make", MODELS)
def test_expired_and_detached(make: Any, ending: str, heard: Event, engine: Engine, sent: Sent) -> None:
    """Expired columns of a detached entity are read by the emit."""
    session = Session(engine)
    session.add(entity := make())
    session.commit()
    session.close() if ending == "close" else session.expunge(entity)
    emit(heard, entity)
    session.close()
    change_row(engine, entity)
    sender = arrived(sent)
    assert (sender.name, sender.notes) == ("then", "then")


@pytest.mark.parametrize("make", MODELS)
def test_some_columns_expired(make: Any, heard: Event, engine: Engine, sent: Sent) -> None:
    """A column that is not expired keeps its unsaved value."""
    with Session(engine) as session:
        session.add(entity := make())
        session.commit()
        session.refresh(entity)
        session.expire(entity, ["name"])
        session.expunge(entity)
    entity.notes = "unsaved"
    emit(heard, entity)
    change_row(engine, entity)
    sender = arrived(sent)
    assert (sender.name, sender.notes) == ("then", "unsaved")


@pytest.mark.parametrize("make", MODELS)
def test_nested_in_arguments(make: Any, heard: Event, engine: Engine, sent: Sent) -> None:
    """Entities in lists and dicts of the arguments are read too."""
    with Session(engine) as session:
        session.add(entity := make())
        session.commit()
    emit(heard, "x", found=[{"it": (entity,)}])
    change_row(engine, entity)
    (message,) = sent()
    assert message.payload.kwargs["found"][0]["it"][0].name == "then"


@pytest.mark.parametrize("make", MODELS)
def test_row_that_is_gone(make: Any, heard: Event, engine: Engine, sent: Sent) -> None:
    """An expired entity without a row makes the emit raise, and nothing is published."""
    with Session(engine) as session:
        session.add(entity := make())
        session.commit()
    with Session(engine) as session:
        session.delete(session.get_one(type(entity), inspect(entity).identity))
        session.commit()
    with pytest.raises(PayloadError, match=r"expired columns could not be read again.*name.*refresh it"):
        emit(heard, entity)
    assert sent() == []


def test_database_that_does_not_answer(heard: Event, engine: Engine, sent: Sent, tmp_path: Path) -> None:
    """A database error during the read becomes a PayloadError of the emit."""
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(other)
    with Session(other) as session:
        session.add(row := LoadedRow(id=1, name="then"))
        session.commit()
        Base.metadata.drop_all(other)
        with pytest.raises(PayloadError, match="could not be read again"):
            emit(heard, row)
    other.dispose()
    assert sent() == []


def test_unfetched_server_default(heard: Event, engine: Engine, sent: Sent) -> None:
    """A column that a server default fills is read."""
    with Session(engine) as session:
        session.add(order := LoadedOrder(id="1"))
        del order.made
        session.commit()
    emit(heard, order)
    assert isinstance(arrived(sent).made, datetime)


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:///{path}", "postgresql+psycopg://{server}", "postgresql+asyncpg://{server}"]
)
@pytest.mark.parametrize("make", MODELS)
def test_expired_in_an_async_session(
    make: Any, url: str, heard: Event, engine: Engine, sent: Sent, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An expired entity of an AsyncSession raises an error that names `refresh`; no coroutine is left unawaited."""
    server = request.getfixturevalue("database_server").partition("://")[2] if "server" in url else ""
    asynchronous = create_async_engine(url.format(path=tmp_path / "async.db", server=server))

    async def run() -> None:
        entity = make()
        async with asynchronous.begin() as connection:
            await connection.run_sync(type(entity).metadata.drop_all)
            await connection.run_sync(type(entity).metadata.create_all)
        async with AsyncSession(asynchronous) as session:
            session.add(entity)
            await session.commit()
            with pytest.raises(PayloadError, match=r"AsyncSession must be awaited.*await session\.refresh"):
                emit(heard, entity)
            await session.refresh(entity)
            emit(heard, entity)
        async with asynchronous.begin() as connection:
            await connection.run_sync(type(entity).metadata.drop_all)
        await asynchronous.dispose()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(run())
    assert arrived(sent).name == "then"


def test_declarative_instance_arrives_with_all_it_has(heard: Event, engine: Engine, sent: Sent) -> None:
    """A plain SQLAlchemy object arrives with relationships, column expressions and hybrids, without a database."""
    with Session(engine) as session:
        session.add(row := LoadedRow(id=1, name="a", parts=[LoadedPart(id=5)]))
        session.commit()
        assert [part.row for part in row.parts] == [row]
        emit(heard, row)
    sender = arrived(sent)
    assert (sender.parts[0].id, sender.parts[0].row, sender.shouted, sender.shout) == (5, sender, "a!", "A")
    assert inspect(sender).detached
    assert not inspect(sender).modified


def test_new_declarative_instance_arrives_new(heard: Event, engine: Engine, sent: Sent) -> None:
    """A new entity arrives as a new one, so that the handler can store it."""
    emit(heard, LoadedRow(name="a", parts=[LoadedPart()]))
    sender = arrived(sent)
    with Session(engine) as session:
        session.add(sender)
        session.commit()
        assert sender.parts[0].row_id == sender.id


def test_mapped_dataclass_arrives(heard: Event, engine: Engine, sent: Sent) -> None:
    """A mapped dataclass arrives as a mapped class."""
    emit(heard, LoadedData(id=1, name="a"))
    assert arrived(sent) == LoadedData(id=1, name="a")


@pytest.mark.parametrize("kind", [LoadedOrder, LoadedPlain, LoadedRow])
def test_column_that_was_not_loaded_is_never_read_later(kind: Any, heard: Event, engine: Engine, sent: Sent) -> None:
    """A column that was not loaded raises in the handler, and is missing from further emits."""
    with Session(engine) as session:
        session.add(kind(id=1 if kind is not LoadedOrder else "1", name="then"))
        session.commit()
    with Session(engine) as session:
        entity = session.scalars(select(kind).options(load_only(kind.name))).one()
        emit(heard, entity)
    sender = arrived(sent)
    assert sender.name == "then"
    for _ in range(2):
        with pytest.raises(Exception, match=r"arrived without .*notes|not bound to a Session"):
            _ = sender.notes
        emit(heard, sender)
        sender = arrived(sent)


def test_deferred_column_is_never_read_later(heard: Event, engine: Engine, sent: Sent) -> None:
    """A deferred column arrives if it was loaded; otherwise reading it raises."""
    with Session(engine) as session:
        session.add(LoadedRow(id=1, name="a"))
        session.commit()
    with Session(engine) as session:
        row = session.get_one(LoadedRow, 1)
        emit(heard, row)
        with pytest.raises(Exception, match="blob"):
            _ = arrived(sent).blob
        assert row.blob == "big"
        emit(heard, row)
    assert arrived(sent).blob == "big"


def test_refresh_reads_what_was_not_loaded(heard: Event, engine: Engine, sent: Sent) -> None:
    """`refresh()` in the handler reads the present values."""
    LoadedOrder(id="1", name="then").save()
    with Session(engine) as session:
        emit(heard, session.scalars(select(LoadedOrder).options(load_only(LoadedOrder.name))).one())
    sender = arrived(sent)
    change_row(engine, sender)
    with pytest.raises(NotLoaded, match=r"LoadedOrder arrived without .*notes.*refresh"):
        _ = sender.notes
    assert sender.refresh().notes == "later"


def stored_order() -> LoadedOrder:
    """Returns a stored order with two items, detached."""
    LoadedOrder(id="1", name="a").save()
    for sku in ("x", "y"):
        LoadedItem(id=sku, sku=sku, order_id="1").save()
    order = LoadedOrder.get("1")
    assert order is not None
    return order


def queried(items: Any) -> list[Any]:
    """Returns the results of several queries of a dynamic relationship."""
    return [
        sorted(item.sku for item in items),
        items.count(),
        items.filter(LoadedItem.sku == "y").one().id,
        items.order_by(LoadedItem.sku).first().sku,
        len(items[0:1]),
        len(items.all()),
    ]


QUERIED = [["x", "y"], 2, "y", "x", 1, 2]


def test_dynamic_relationship_outside_a_transaction(engine: Engine) -> None:
    """A dynamic relationship reads the rows of a detached entity, outside and inside a transaction."""
    order = stored_order()
    assert queried(order.items) == QUERIED
    with transaction():
        assert queried(order.items) == QUERIED


def test_dynamic_relationship_in_an_offloaded_handler(evt: Event, app: Celery, engine: Engine, work: Work) -> None:
    """A dynamic relationship gives the same results in an offloaded handler."""
    on(evt, offload={"max_retries": 0, "ignore_result": False}, name="shop.mail")(lambda sender: queried(sender.items))
    assert work(app).only(emit(evt, stored_order())) == QUERIED


def test_dynamic_relationship_of_a_plain_class(heard: Event, engine: Engine, sent: Sent) -> None:
    """A dynamic relationship of a plain class reads its rows; SQLAlchemy alone would warn and return none."""
    with Session(engine) as session:
        session.add(row := LoadedRow(id=1, name="a", parts=[LoadedPart(id=5)]))
        session.commit()
        emit(heard, row)
    assert [part.id for part in arrived(sent).questions] == [5]


def test_unsaved_members_of_a_dynamic_relationship(engine: Engine) -> None:
    """Querying a dynamic relationship with unsaved members raises until they are saved."""
    order = stored_order()
    order.items.append(LoadedItem(id="z", sku="z"))
    with pytest.raises(NotSaved, match=r"LoadedOrder\.items"):
        list(order.items)
    order.save()
    assert order.items.count() == 3


def test_new_members_of_a_dynamic_relationship_travel(heard: Event, engine: Engine, sent: Sent) -> None:
    """A new entity arrives with its new members, and a handler can save both."""
    order = LoadedOrder(id="1")
    order.items.append(LoadedItem(id="x", sku="x"))
    emit(heard, order)
    sender = arrived(sent)
    assert [item.sku for item in sender.items] == ["x"]
    assert sender.save().items.one().order_id == "1"


def test_update_through_a_dynamic_relationship_is_committed(engine: Engine) -> None:
    """An update through a dynamic relationship is committed."""
    order = stored_order()
    order.items.filter(LoadedItem.sku == "x").update({"sku": "w"})
    assert sorted(item.sku for item in order.items) == ["w", "y"]


def test_other_relationships_that_are_asked_for(engine: Engine) -> None:
    """A read-only relationship loads on a detached entity like any other."""
    assert sorted(item.sku for item in stored_order().lines) == ["x", "y"]
