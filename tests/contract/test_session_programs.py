"""Random programs over sessions and transactions against a plain model of what they commit: contract section 7.

A program is data: a tree of steps. `Run` performs it with Nitro and SQLAlchemy, and tells each step to a model that
knows neither: `Books`, a stack of scopes for each session. NITRO_CHAOS=full makes it thousands of programs.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, delete, event, inspect, select, text, union_all
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure import database
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Emission, Event, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.outbox.tables import OPEN, deliveries, emissions

SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432"
PROGRAMS = {"full": 5000}.get(os.environ.get("NITRO_CHAOS", ""), 150)
PATIENCE = 120.0

Sent = Callable[..., list[Any]]


class Ticket(Entity, table=True):
    """A row of the user's own."""

    __tablename__ = "session_program_ticket"

    note: str = ""


class Stop(Exception):
    """What a step raises that fails."""


# Programs

OPENING = ("block", "attempt", "own", "elsewhere", "adopt", "nested", "nested undone", "begun", "begun undone")
"""Steps with a body: what follows, up to `end`, or up to `fail`, which is raised as far as the next `attempt`."""

OF_SESSIONS = ("add", "flush", "again", "commit", "rollback", "close", "begin", "savepoint", "release", "undo")
"""Steps of a session that was opened by `own`: of the innermost one, or of the one around it, which is `outer`."""

WEIGHTS = {
    **dict.fromkeys((*OPENING, *OF_SESSIONS, "add outer", "commit outer", "rollback outer", "adopt outer"), 1),
    **{"block": 3, "attempt": 3, "own": 4, "adopt": 2, "nested": 2, "add": 6, "add outer": 2, "commit": 3, "undo": 2},
    **{"save": 3, "tell": 3, "look": 2, "end": 10, "fail": 3},
}
programs = st.lists(st.sampled_from([step for step, weight in WEIGHTS.items() for _ in range(weight)]), max_size=50)


# The model


@dataclass(slots=True)
class Scope:
    """A transaction or a savepoint: what was written in it. A loose one has no `with` that ends it."""

    loose: bool = False
    ids: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Books:
    """What a session has not committed yet, scope by scope, the whole transaction first.

    Attributes:
        explicit: it was begun by a call.
        guards: the blocks around, each of which ends a scope of this session.
        kept: where what is committed goes.
    """

    kept: set[str]
    scopes: list[Scope] = field(default_factory=list)
    explicit: bool = False
    guards: list[str] = field(default_factory=list)

    def begin(self, *, explicit: bool = False) -> None:
        if not self.scopes:
            self.scopes, self.explicit = [Scope()], explicit

    def write(self, ids: list[str]) -> None:
        self.begin()
        self.scopes[-1].ids += ids

    def open(self, *, loose: bool) -> None:
        self.begin()
        self.scopes.append(Scope(loose))

    def release(self) -> None:
        ids = self.scopes.pop().ids
        self.scopes[-1].ids += ids

    def end(self, *, commit: bool) -> None:
        if commit:
            self.kept.update(written for scope in self.scopes for written in scope.ids)
        self.scopes, self.explicit = [], False

    @contextmanager
    def whole(self, guard: str) -> Iterator[None]:
        """A block that commits at its end, or rolls back when an exception leaves it."""
        self.begin(explicit=True)
        self.guards.append(guard)
        try:
            yield
        except BaseException:
            self.end(commit=False)
            raise
        else:
            self.end(commit=True)
        finally:
            self.guards.pop()

    @contextmanager
    def part(self, guard: str) -> Iterator[None]:
        """A block that is a savepoint; loose ones that it leaves open share its fate."""
        self.open(loose=False)
        depth = len(self.scopes)
        self.guards.append(guard)
        try:
            yield
        except BaseException:
            del self.scopes[depth - 1 :]
            raise
        else:
            while len(self.scopes) >= depth:
                self.release()
        finally:
            self.guards.pop()

    def forget(self, depth: int) -> None:
        """Drop what was written in the scope of this depth and in those inside it, which stay open."""
        for scope in self.scopes[depth:]:
            scope.ids.clear()

    @property
    def may_be_ended(self) -> bool:
        """Whether commit, rollback and close are allowed here: SQLAlchemy forbids them within its own blocks."""
        return set(self.guards) <= {"adopted"}

    @property
    def has_written(self) -> bool:
        return any(scope.ids for scope in self.scopes)


# Programs against the model


@dataclass(slots=True)
class Place:
    """Where programs run.

    Attributes:
        engine: of the user's own sessions.
        exclusive: one writer at a time. Two sessions of one thread that both write would wait for each other for ever
            there, so a step that would have to wait for another session of its own thread is left out.
        legacy: its driver commits with a savepoint that is the first thing in a transaction, so that is left out.
    """

    event: Event
    sent: Sent
    engine: Engine
    exclusive: bool = True
    legacy: bool = False
    published: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stored(self) -> set[str]:
        """The tickets and the open deliveries, as another connection sees them."""
        open_ones = select(deliveries.c.id).where(deliveries.c.state.in_(OPEN))
        with self.engine.connect() as connection:
            return set(connection.scalars(union_all(select(Ticket.id), open_ones)))

    def take(self) -> list[str]:
        """All task ids that the broker has been given so far."""
        with self._lock:
            self.published += [message.id for message in self.sent()]
            return list(self.published)

    def clear(self) -> None:
        """Make it as good as new."""
        self.sent()
        self.published.clear()
        with database.engine().begin() as connection:
            for table in (deliveries, emissions, Ticket):
                connection.execute(delete(table))


@dataclass(slots=True)
class Own:
    """A session of the user's own, and its books."""

    session: Session
    books: Books
    added: list[Ticket] = field(default_factory=list)


class Run:
    """A thread that performs a program, and the model of what it must have committed.

    Attributes:
        kept: ids of the tickets and deliveries that must be there.
        made: all ids, of what is rolled back too.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kept: set[str] = set()
        self.made: set[str] = set()
        self.tasks: set[str] = set()
        self.sessions: list[Own] = []
        self.current: list[Books] = []
        self.writer: Books | None = None

    def perform(self, body: tuple[Step, ...]) -> None:
        for step in body:
            own = self.sessions[~step.at] if step.at < len(self.sessions) else None
            getattr(self, step.do)(step, *([own] if step.do in SESSION_LEAVES + SESSION_BLOCKS else []))

    def check(self) -> None:
        """What this thread has committed, and nothing else of what it has done, is there and was published."""
        assert self.place.stored() & self.made == self.kept
        published = [task for task in self.place.take() if task in self.tasks]
        assert sorted(published) == sorted(self.kept & self.tasks)

    # The model's side of a write

    def may_write(self, books: Books | None) -> bool:
        """Whether no other session of this thread has the lock; None stands for a commit of its own."""
        return not self.place.exclusive or self.writer is None or self.writer is books

    def note(self, books: Books | None, ticket: Ticket | None, emission: Emission) -> None:
        (task,) = emission.offloaded.values()
        ids = [task] if ticket is None else [task, ticket.id]
        self.made.update(ids)
        self.tasks.add(task)
        if books is None:
            self.kept.update(ids)
        else:
            books.write(ids)
            self.writer = books

    @property
    def joined(self) -> Books | None:
        """The books of the `transaction()` around, if there is one."""
        return self.current[-1] if self.current else None

    def ended(self, books: Books) -> None:
        if self.writer is books and not books.scopes:
            self.writer = None

    # Steps without a session of the user's own

    def save(self, step: Step) -> None:
        """An entity that is saved, and an emit about it."""
        if self.may_write(self.joined):
            ticket = Ticket().save()
            self.note(self.joined, ticket, self.place.event.emit(ticket))

    def tell(self, step: Step) -> None:
        """An emit about nothing in the database."""
        if self.may_write(self.joined):
            self.note(self.joined, None, self.place.event.emit("till"))

    def look(self, step: Step) -> None:
        """Others see what is committed by now; nothing else has left."""
        assert self.place.stored() & self.made == self.kept
        assert {task for task in self.place.take() if task in self.tasks} <= self.kept

    def fail(self, step: Step) -> None:
        raise Stop

    def attempt(self, step: Step) -> None:
        try:
            self.perform(step.body)
        except Stop:
            pass

    def block(self, step: Step) -> None:
        """A transaction of Nitro's own; inside another one a savepoint."""
        books = self.joined
        if books is None:
            with self.inside(Books(self.kept), "opened", part=False), transaction():
                self.perform(step.body)
        elif self.may_write(books):
            with self.inside(books, "inner", part=True), transaction():
                # A savepoint of Nitro's own transaction takes the lock, also when nothing is written.
                self.writer = books if "opened" in books.guards else self.writer
                self.perform(step.body)

    def own(self, step: Step) -> None:
        """A session of the user's own, closed at the end."""
        books = Books(self.kept)
        try:
            with Session(self.place.engine, expire_on_commit=False) as session:
                self.sessions.append(Own(session, books))
                self.perform(step.body)
        finally:
            self.sessions.pop()
            self.finish(books, commit=False)

    def elsewhere(self, step: Step) -> None:
        """Another thread with a copy of this context, which takes no part in what is open here."""
        if not self.may_write(None):
            return
        other = Run(self.place)
        other.kept, other.made, other.tasks = self.kept, self.made, self.tasks
        with ThreadPoolExecutor(1) as thread:
            thread.submit(contextvars.copy_context().run, other.perform, step.body).result(PATIENCE)

    # Steps of a session of the user's own

    def add(self, step: Step, own: Own) -> None:
        """A new entity that is added, and an emit about it."""
        if self.joined not in (None, own.books) or not self.may_write(own.books):
            return
        own.session.add(ticket := Ticket())
        own.added.append(ticket)
        if step.by_hand:
            own.session.flush()
        self.note(own.books, ticket, self.place.event.emit(ticket))

    def again(self, step: Step, own: Own) -> None:
        """An emit about an entity that was committed earlier and is still in the session: it waits for who writes."""
        there = [one for one in own.added if one in own.session and not inspect(one).expired and one.id in self.kept]
        waits = own.books.explicit or own.books.has_written
        if not there or (own.books.scopes and not waits) or (waits and self.joined not in (None, own.books)):
            return  # the contract leaves open what a session is that was begun by a savepoint, or by what is undone
        books = self.joined or (own.books if waits else None)
        if self.may_write(books):
            self.note(books, None, self.place.event.emit("till", ticket=there[-1]))

    def flush(self, step: Step, own: Own) -> None:
        own.session.flush()

    def begin(self, step: Step, own: Own) -> None:
        if not own.books.scopes:
            own.session.begin()
            own.books.begin(explicit=True)

    def commit(self, step: Step, own: Own) -> None:
        if own.books.may_be_ended:
            own.session.commit()
            self.finish(own.books, commit=True)

    def rollback(self, step: Step, own: Own) -> None:
        if own.books.may_be_ended:
            own.session.rollback()
            self.finish(own.books, commit=False)

    def close(self, step: Step, own: Own) -> None:
        if own.books.may_be_ended:
            own.session.close()
            self.finish(own.books, commit=False)

    def finish(self, books: Books, *, commit: bool) -> None:
        books.end(commit=commit)
        self.ended(books)

    def savepoint(self, step: Step, own: Own) -> None:
        """A savepoint that no `with` ends; inside a savepoint of Nitro's it would have to be ended."""
        if self.may_have_savepoint(own) and own.books.guards[-1:] != ["inner"]:
            own.session.begin_nested()
            own.books.open(loose=True)

    def may_have_savepoint(self, own: Own) -> bool:
        return not self.place.legacy or own.books.has_written

    def release(self, step: Step, own: Own) -> None:
        if own.books.scopes and own.books.scopes[-1].loose:
            own.session.get_nested_transaction().commit()
            own.books.release()

    def undo(self, step: Step, own: Own) -> None:
        if own.books.scopes and own.books.scopes[-1].loose:
            own.session.get_nested_transaction().rollback()
            own.books.scopes.pop()

    def adopt(self, step: Step, own: Own) -> None:
        """`transaction(session)`: it commits what it has begun, else it is a savepoint."""
        part = bool(own.books.scopes)
        with self.inside(own.books, "inner" if part else "adopted", part=part), transaction(own.session):
            self.perform(step.body)

    def nested(self, step: Step, own: Own) -> None:
        if self.may_have_savepoint(own):
            with own.books.part("nested"), own.session.begin_nested() as savepoint:
                depth = len(own.books.scopes) - 1
                self.perform(step.body)
                if step.by_hand:
                    savepoint.rollback()
                    own.books.forget(depth)

    def begun(self, step: Step, own: Own) -> None:
        if own.books.scopes:
            return
        with self.releasing(own.books), own.books.whole("begun"), own.session.begin() as begun:
            self.perform(step.body)
            if step.by_hand:
                begun.rollback()
                own.books.forget(0)

    @contextmanager
    def inside(self, books: Books, guard: str, *, part: bool) -> Iterator[None]:
        """The model's side of a `transaction()` block."""
        self.current.append(books)
        try:
            with self.releasing(books), books.part(guard) if part else books.whole(guard):
                yield
        finally:
            self.current.pop()

    @contextmanager
    def releasing(self, books: Books) -> Iterator[None]:
        try:
            yield
        finally:
            self.ended(books)


@pytest.fixture(params=["bound", "url", pytest.param("postgresql", marks=pytest.mark.server)])
def place(
    request: pytest.FixtureRequest, evt: Event, app: Celery, sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """The user's engine is Nitro's too, or another one of the same database; then the same on PostgreSQL."""
    on(evt, offload=True, name="shop.ticket")(lambda sender, **kwargs: None)
    if request.param == "postgresql":
        engine = create_engine(request.getfixturevalue("postgresql"))
        bind(app, engine)
        database.create_tables()
        yield Place(evt, sent, engine, exclusive=False)
    else:
        file = tmp_path / "programs.db"
        engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": 30})
        if request.param == "bound":
            bind(app, engine)
        else:
            monkeypatch.setenv("NITRO_DB_URL", f"sqlite:///{file}")
        for each in {engine, database.engine()}:
            event.listen(each, "connect", _unsafe_but_fast)
        yield Place(evt, sent, engine, legacy=request.param == "url")
    engine.dispose()


def _unsafe_but_fast(driver: Any, _record: object) -> None:
    driver.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URL of an empty PostgreSQL database, dropped at the end; skips loudly where no server answers."""
    name = f"nitro_programs_{os.getpid()}"
    server = create_engine(f"{SERVER}/postgres", isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    try:
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        if os.environ.get("NITRO_TEST_SERVERS") == "required":
            raise
        pytest.skip(f"MISSING SERVER: PostgreSQL does not answer at {SERVER}: {error}")
    yield f"{SERVER}/{name}"
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


check = settings(max_examples=PROGRAMS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@check
@given(program=bodies())
def test_what_is_committed_is_open_and_published(place: Place, program: tuple[Step, ...]) -> None:
    """The open deliveries and the user's rows are those of the committed emits, and only those were published."""
    place.clear()
    run = Run(place)
    run.attempt(Step("attempt", program))
    run.check()
