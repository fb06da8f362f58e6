"""An emit about entities in a user's session waits for the commit of that session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel, create_engine

from nitro.domain.entities.base_entity import Entity
from nitro.errors import TransactionError
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, drain, on
from nitro.infrastructure.offload import bind

pytestmark = pytest.mark.usefixtures("offloading")

Sent = Callable[..., list[Any]]


class Voucher(Entity, table=True):
    """An entity that is stored through a user's session."""

    __tablename__ = "own_session_voucher"

    amount: int = 0


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database of the user."""
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    SQLModel.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def redeemed(evt: Event, app: Celery, engine: Engine) -> Event:
    """An event with an offloaded handler; its deliveries are tracked in the user's database."""
    bind(app, engine)
    on(evt, offload=True, name="shop.redeem")(lambda sender, *args, **kwargs: None)
    return evt


@pytest.mark.parametrize("place", ["sender", "argument", "keyword"])
def test_offloads_leave_with_the_commit(redeemed: Event, engine: Engine, sent: Sent, place: str) -> None:
    """The offload leaves with the commit, whether the entity is sender, argument or keyword."""
    with Session(engine) as session:
        voucher = Voucher()
        session.add(voucher)
        calls: dict[str, Callable[[], Any]] = {
            "sender": lambda: redeemed.emit(voucher),
            "argument": lambda: redeemed.emit("till", voucher),
            "keyword": lambda: redeemed.emit("till", voucher=voucher),
        }
        calls[place]()
        assert sent() == []
        session.commit()
        assert len(sent()) == 1


def test_rollback_publishes_nothing(redeemed: Event, engine: Engine, sent: Sent) -> None:
    """A rollback of the session leaves neither a row nor a message."""
    with Session(engine) as session:
        voucher = Voucher()
        session.add(voucher)
        redeemed.emit(voucher)
        session.rollback()
        session.commit()
    assert sent() == []


def test_rollback_of_a_savepoint_takes_its_offloads(redeemed: Event, engine: Engine, sent: Sent) -> None:
    """A rolled-back savepoint drops its own emits; the other emits leave with the commit."""
    with Session(engine) as session:
        kept, dropped = Voucher(id="kept"), Voucher(id="dropped")
        session.add(kept)
        redeemed.emit(kept)
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.add(dropped)
            redeemed.emit(dropped)
            raise ZeroDivisionError
        session.commit()
    assert [message.payload.sender.id for message in sent()] == ["kept"]


def test_a_session_that_was_begun_explicitly_is_joined(redeemed: Event, engine: Engine, sent: Sent) -> None:
    """An emit joins a session after `begin()`, even if the session has written nothing."""
    with Session(engine) as session:
        session.add(Voucher(id="v1"))
        session.commit()
    with Session(engine) as session, session.begin():
        voucher = session.get_one(Voucher, "v1")
        redeemed.emit(voucher)
        assert sent() == []
    assert len(sent()) == 1


def test_a_session_that_only_reads_is_not_waited_for(redeemed: Event, engine: Engine, sent: Sent) -> None:
    """An emit leaves at once if its session only reads, because such a session is not committed."""
    with Session(engine) as session:
        session.add(Voucher(id="v1"))
        session.commit()
    with Session(engine) as session:
        redeemed.emit(session.get_one(Voucher, "v1"))
        assert len(sent()) == 1


def test_closing_without_a_commit_is_a_warning(
    redeemed: Event, engine: Engine, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that is closed without a commit logs a WARNING with the event."""
    with Session(engine) as session:
        session.add(voucher := Voucher())
        redeemed.emit(voucher)
    assert sent() == []
    (record,) = [record for record in caplog.records if record.name == "nitro.events"]
    assert record.levelno == logging.WARNING
    assert redeemed.name in record.getMessage()


def test_async_handlers_start_after_the_commit(evt: Event, engine: Engine, app: Celery) -> None:
    """Async handlers start after the session's commit, as in a `transaction()`."""
    heard: list[str] = []

    @on(evt)
    async def handler(sender: Voucher) -> None:
        heard.append(sender.id)

    with Session(engine, expire_on_commit=False) as session:
        session.add(voucher := Voucher(id="v1"))
        evt.emit(voucher)
        assert drain(1)
        assert heard == []
        session.commit()
    assert drain(5)
    assert heard == ["v1"]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Engine]:
    """A database without an outbox."""
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    SQLModel.metadata.create_all(other)
    yield other
    other.dispose()


def test_two_databases_are_an_error(redeemed: Event, other: Engine, sent: Sent) -> None:
    """An emit in transactions of two databases raises an error that names both."""
    with Session(other) as session, transaction():
        session.add(voucher := Voucher())
        with pytest.raises(TransactionError, match=r"other\.db.*own\.db|own\.db.*other\.db"):
            redeemed.emit(voucher)
    assert sent() == []


def test_a_session_of_another_database_than_the_outbox_is_an_error(redeemed: Event, other: Engine, sent: Sent) -> None:
    """An emit in a session of another database than the outbox's raises; the error names both and `bind`."""
    with Session(other) as session:
        session.add(voucher := Voucher())
        with pytest.raises(TransactionError, match=r"other\.db.*own\.db.*bind\(app, engine\)"):
            redeemed.emit(voucher)
    assert sent() == []


def test_an_untracked_emit_joins_a_session_of_any_database(evt: Event, app: Celery, other: Engine, sent: Sent) -> None:
    """An untracked emit joins a session of any database, because it writes no row."""
    on(evt, offload={"delivery": "broker"}, name="shop.redeem")(lambda sender: None)
    with Session(other) as session:
        session.add(voucher := Voucher())
        evt.emit(voucher)
        assert sent() == []
        session.commit()
    assert len(sent()) == 1
