"""`transaction(session)` accepts scoped sessions, and failed web requests send nothing."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import pytest
from celery import Celery
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, Integer, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlmodel import Field, SQLModel, create_engine
from sqlmodel import Session as ModelSession

from nitro.errors import TransactionError
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, Namespace, on
from nitro.infrastructure.offload import bind

Sent: TypeAlias = Callable[..., list[Any]]

ENDS = pytest.mark.parametrize("fails", [False, True], ids=["answers", "fails"])


class Booking(SQLModel, table=True):
    """A plain table."""

    __tablename__ = "scoped_booking"

    id: int | None = Field(default=None, primary_key=True)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database of the user."""
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    SQLModel.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def booked(evt: Event, app: Celery, engine: Engine) -> Event:
    """An event with a tracked handler."""
    bind(app, engine)
    on(evt, offload=True, name="shop.book")(lambda sender, **kwargs: None)
    return evt


def stored(engine: Engine) -> int:
    """Returns the number of committed bookings."""
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Booking)) or 0


@ENDS
def test_a_scoped_session_is_the_one_that_it_stands_for(booked: Event, engine: Engine, sent: Sent, fails: bool) -> None:
    """`transaction(scoped_session)` commits saves and emits of its session together."""
    scoped = scoped_session(sessionmaker(engine))
    try:
        with transaction(scoped) as session:
            assert session is scoped()
            scoped.add(booking := Booking())
            booked.emit([booking])
            booked.emit("till")
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    scoped.remove()
    assert len(sent()) == 2 * stored(engine) == (0 if fails else 2)


@ENDS
def test_an_async_scoped_session_too(booked: Event, engine: Engine, sent: Sent, fails: bool) -> None:
    """`async with transaction(async_scoped_session)` commits saves and emits of its session together."""

    async def work() -> None:
        awaited = create_async_engine(engine.url.set(drivername="sqlite+aiosqlite"))
        scoped = async_scoped_session(async_sessionmaker(awaited), scopefunc=asyncio.current_task)
        try:
            async with transaction(scoped) as session:
                assert session is scoped()
                scoped.add(booking := Booking())
                await booked.emit_async(booking)
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        await scoped.remove()
        await awaited.dispose()

    asyncio.run(work())
    assert len(sent()) == stored(engine) == (0 if fails else 1)


@pytest.mark.parametrize("kind", ["engine", "factory", "class", "text", "connection"])
def test_what_is_no_session_is_refused(engine: Engine, kind: str) -> None:
    """An object that is no session is refused; the error says which objects are accepted."""
    factory = sessionmaker(engine)
    with engine.connect() as connection:
        others: dict[str, tuple[Any, str]] = {
            "engine": (engine, "Engine"),
            "factory": (factory, "sessionmaker: call it"),
            "class": (Session, "class Session: call it"),
            "text": ("sqlite://", "str"),
            "connection": (connection, "Connection"),
        }
        value, description = others[kind]
        with pytest.raises(TransactionError, match=rf"Session, an AsyncSession, or a scoped_session.*{description}"):
            transaction(value)


@pytest.fixture
def shop(booked: Event, engine: Engine) -> tuple[Flask, SQLAlchemy, Any]:
    """A Flask app with Flask-SQLAlchemy on that database."""
    flask, db = Flask("shop"), SQLAlchemy()
    flask.config["SQLALCHEMY_DATABASE_URI"] = str(engine.url)
    db.init_app(flask)

    class Order(db.Model):  # type: ignore[name-defined,misc]
        """A model as in Flask-SQLAlchemy's documentation."""

        __tablename__ = "scoped_order"

        id = db.Column(Integer, primary_key=True)

    with flask.app_context():
        db.create_all()
    return flask, db, Order


@ENDS
@pytest.mark.parametrize("adopted", [True, False])
def test_a_request_of_flask(
    booked: Event, sent: Sent, engine: Engine, shop: Any, caplog: pytest.LogCaptureFixture, fails: bool, adopted: bool
) -> None:
    """A failed Flask request sends nothing; if its session was closed without a commit, a WARNING is logged."""
    flask, db, _ = shop

    @flask.post("/")
    def book() -> str:
        if adopted:
            with transaction(db.session):
                db.session.add(booking := Booking())
                booked.emit(booking)
                assert not fails, "the handler of the request has failed"
            return "booked"
        db.session.add(booking := Booking())
        db.session.flush()
        booked.emit({"booking": booking})
        assert not fails, "the handler of the request has failed"
        db.session.commit()
        return "booked"

    assert flask.test_client().post("/").status_code == (500 if fails else 200)
    assert len(sent()) == stored(engine) == (0 if fails else 1)
    warnings = [
        record for record in caplog.records if record.name == "nitro.events" and record.levelno == logging.WARNING
    ]
    assert len(warnings) == (1 if fails and not adopted else 0)


@ENDS
def test_a_model_of_flask_sqlalchemy(shop: Any, fails: bool) -> None:
    """An async handler starts only after the commit of a Flask-SQLAlchemy session."""
    flask, db, order = shop
    heard: list[int] = []
    evt = Namespace().event("order.placed")

    @on(evt)
    async def handler(sender: Any) -> None:
        heard.append(1)

    async def serve() -> None:
        with flask.app_context():
            db.session.add(instance := order())
            db.session.flush()
            evt.emit([instance])
            if not fails:
                db.session.commit()
        await asyncio.sleep(0)

    asyncio.run(serve())
    assert heard == ([] if fails else [1])


@ENDS
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_request_of_fastapi(booked: Event, sent: Sent, engine: Engine, fails: bool, kind: str) -> None:
    """A FastAPI endpoint that ends in 500 sends nothing, if a dependency commits its session."""
    web = FastAPI()

    def session_of_request() -> Iterator[ModelSession]:
        with ModelSession(engine) as session:
            yield session
            session.commit()

    own = Annotated[ModelSession, Depends(session_of_request)]

    def book(session: own) -> str:
        session.add(booking := Booking())
        booked.emit([booking])
        assert booking.id is not None
        if fails:
            raise ZeroDivisionError
        return "booked"

    async def book_async(session: own) -> str:
        session.add(booking := Booking())
        await booked.emit_async(booking)
        if fails:
            raise ZeroDivisionError
        return "booked"

    web.post("/")(book if kind == "def" else book_async)
    with TestClient(web, raise_server_exceptions=False) as client:
        assert client.post("/").status_code == (500 if fails else 200)
    assert len(sent()) == stored(engine) == (0 if fails else 1)


@ENDS
def test_a_request_of_fastapi_with_an_async_session(booked: Event, sent: Sent, engine: Engine, fails: bool) -> None:
    """A FastAPI endpoint that ends in 500 sends nothing, if a dependency begins the AsyncSession and commits it."""
    web, awaited = FastAPI(), create_async_engine(engine.url.set(drivername="sqlite+aiosqlite"))

    async def session_of_request() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(awaited) as session, session.begin():
            yield session

    @web.post("/")
    async def book(session: Annotated[AsyncSession, Depends(session_of_request)]) -> str:
        session.add(booking := Booking())
        await booked.emit_async({"booking": booking})
        if fails:
            raise ZeroDivisionError
        return "booked"

    with TestClient(web, raise_server_exceptions=False) as client:
        assert client.post("/").status_code == (500 if fails else 200)
    asyncio.run(awaited.dispose())
    assert len(sent()) == stored(engine) == (0 if fails else 1)
