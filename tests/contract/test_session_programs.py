"""Random programs over sessions and transactions against a plain model of what they commit: contract section 7.

A program is a list of steps, such as `own, add, nested, add, fail`. `Run` performs it with Nitro and SQLAlchemy, and
tells each step to a model that knows neither: `Books`, the open scopes of a session and what was written in each.
NITRO_CHAOS=full makes it thousands of programs.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from inspect import isawaitable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, NullPool, create_engine, delete, event, inspect, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import Session

from nitro.domain.entities.base_entity import Entity
from nitro.errors import TransactionError
from nitro.infrastructure import database
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Emission, Event, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.outbox.schema import OPEN_STATES, deliveries, emissions

SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432"
PATIENCE = 120.0
FULL = os.environ.get("NITRO_CHAOS") == "full"

Sent = Callable[..., list[Any]]


class Ticket(Entity, table=True):
    """A row of the user's own."""

    __tablename__ = "session_program_ticket"

    note: str = ""


class Stop(Exception):
    """What a step raises that fails."""


# Programs

OPENING = ("own", "block", "adopt", "adopt outer", "nested", "nested undone", "begun", "begun undone", "attempt")
"""Steps with a body: what follows, up to `end`. At its end a `failing` one raises, which is caught around it."""

OF_SESSIONS = ("add", "flush", "again", "commit", "rollback", "close", "begin", "savepoint", "release", "undo")
"""Steps of a session that `own` has opened: of the innermost one, or of the one around it, which is `outer`."""

SEQUENCES = (
    "own, add, commit, again",
    "begin, again, rollback, again",
    "savepoint, add, undo",
    "savepoint, add, release",
    "add, close, commit",
)
"""What chance alone would seldom bring together."""

WEIGHTS = (
    (12, ("end",)),
    (4, ("add", "look")),
    (3, ("own", "add outer", "again", "commit", "save", "block failing")),
    (2, ("block", "tell", "adopt failing", "nested failing", "commit outer", *SEQUENCES)),
    (1, (*OPENING, *OF_SESSIONS, "own failing", "begun failing", "add flushed", "rollback outer", "fail")),
)
STEPS = [step for weight, steps in WEIGHTS for step in steps * weight]


def some(steps: Iterable[str]) -> st.SearchStrategy[list[str]]:
    """Programs of these steps, most of them long ones; they shrink by steps that become nothing."""
    drawn = st.lists(st.sampled_from(["", *steps]), min_size=30, max_size=60)
    return drawn.map(lambda found: [step for sequence in found if sequence for step in sequence.split(", ")])


programs = some([*STEPS, "elsewhere", "elsewhere"])


# The model


@dataclass(slots=True)
class Scope:
    """A transaction or a savepoint, and the ids of what was written in it. No `with` ends a loose one."""

    loose: bool = False
    ids: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Books:
    """What a session has not committed yet, scope by scope, the whole transaction first.

    Attributes:
        kept: where the ids go that it commits.
        explicit: somebody has begun the transaction by a call.
        guards: the blocks around that end a scope of this session, the innermost last.
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

    def savepoint(self, *, loose: bool) -> None:
        self.begin(explicit=True)
        self.scopes.append(Scope(loose))

    def release(self) -> None:
        ids = self.scopes.pop().ids
        self.scopes[-1].ids += ids

    def end(self, *, commit: bool) -> None:
        if commit:
            self.kept.update(written for scope in self.scopes for written in scope.ids)
        self.scopes, self.explicit = [], False

    def forget(self, depth: int) -> None:
        """Roll back the scopes from this depth on; the block that is around them ends them."""
        for scope in self.scopes[depth:]:
            scope.ids.clear()

    @contextmanager
    def whole(self, guard: str) -> Iterator[int]:
        """A block that commits at its end, or rolls back when an exception leaves it; its depth."""
        self.begin(explicit=True)
        self.guards.append(guard)
        try:
            yield 0
        except BaseException:
            self.end(commit=False)
            raise
        finally:
            self.end(commit=True)
            self.guards.pop()

    @contextmanager
    def part(self, guard: str) -> Iterator[int]:
        """A block that is a savepoint, and ends loose ones inside it; its depth."""
        self.savepoint(loose=False)
        depth = len(self.scopes) - 1
        self.guards.append(guard)
        try:
            yield depth
        except BaseException:
            self.forget(depth)
            raise
        finally:
            while len(self.scopes) > depth:
                self.release()
            self.guards.pop()

    @property
    def may_end(self) -> bool:
        """Whether the user may commit, roll back and close here: within a block that does it he may not."""
        return set(self.guards) <= {"adopted"}

    @property
    def has_written(self) -> bool:
        return any(scope.ids for scope in self.scopes)


# Programs against the model


@dataclass(slots=True)
class Place:
    """Where programs run.

    Attributes:
        engine: of the user's own sessions, which are each an `AsyncSession` where `awaits` says so.
        exclusive: the database has one writer at a time. Two sessions of one thread that write at once would wait for
            each other for ever there, so that a step is left out for which another session would have to wait.
        legacy: the driver takes a savepoint that begins a transaction for all of it, so that such ones are left out.
    """

    event: Event
    sent: Sent
    engine: Any
    awaits: bool = False
    exclusive: bool = True
    legacy: bool = False
    _published: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> Any:
        """A session of the user's own."""
        return (AsyncSession if self.awaits else Session)(self.engine, expire_on_commit=False)

    def stored(self) -> set[str]:
        """The tickets and the open deliveries, as another connection sees them."""
        open_ones = select(deliveries.c.id).where(deliveries.c.state.in_(OPEN_STATES))
        with database.engine().connect() as connection:
            return set(connection.scalars(union_all(select(Ticket.id), open_ones)))

    def published(self) -> list[str]:
        """The ids of all messages that the broker was ever given."""
        with self._lock:
            self._published += [message.id for message in self.sent()]
            return list(self._published)

    def clear(self) -> None:
        """Make it as good as new."""
        self.published()
        self._published.clear()
        with database.engine().begin() as connection:
            for table in (deliveries, emissions, Ticket):
                connection.execute(delete(table))


@dataclass(slots=True)
class Own:
    """A session of the user's own, its books, and what was ever added to it."""

    session: Any
    books: Books
    added: list[Ticket] = field(default_factory=list)


class Run:
    """A thread that performs a program, and the model of what it must have committed.

    It is written with `await`, and waits for an `AsyncSession` only.

    Attributes:
        steps: those that are still to come.
        kept: ids of the tickets and deliveries that must be there.
        tickets: ids of all that were made, also of those that were rolled back; `tasks` those of deliveries.
        sessions: of the user's own, those that are open.
        blocks: the books of each `transaction()` that is open.
        refused: its context shows a `transaction()` of another thread, so that nothing commits by itself here.
        writer: the books of the session that has the lock, where there is one.
    """

    def __init__(self, place: Place, steps: Iterable[str]) -> None:
        self.place = place
        self.steps = deque(steps)
        self.kept: set[str] = set()
        self.tickets: set[str] = set()
        self.tasks: set[str] = set()
        self.sessions: list[Own] = []
        self.blocks: list[Books] = []
        self.refused = False
        self.writer: Books | None = None

    async def perform(self) -> Run:
        """The whole program; what fails ends at most here, and the next step comes."""
        while self.steps:
            await self.attempt("")
        return self

    async def body(self, how: str = "") -> None:
        """The steps up to the end of a block."""
        while self.steps and (step := self.steps.popleft()) != "end":
            await self.step(*step.partition(" ")[::2])
        if how == "failing":
            raise Stop

    async def step(self, do: str, how: str) -> None:
        try:
            if do not in (*OF_SESSIONS, "adopt", "nested", "begun"):
                await getattr(self, do)(how)
            elif self.sessions:
                await getattr(self, do)(how, self.sessions[-2:][0 if how == "outer" else -1])
        except Stop:
            if how != "failing":
                raise

    # Steps anywhere

    async def save(self, how: str) -> None:
        """An entity that is saved, and an emit about it."""
        if self.refused and self.block_around is None:
            with pytest.raises(TransactionError, match="another thread"):
                Ticket().save()
        elif self.may_write(self.block_around):
            ticket = Ticket().save()
            await self.emit(self.block_around, ticket, new=ticket)

    async def tell(self, how: str) -> None:
        """An emit that has nothing to do with the database."""
        if self.may_write(self.block_around):
            await self.emit(self.block_around, "till")

    async def look(self, how: str) -> None:
        """Others see what is committed by now, and nothing else has left."""
        assert self.place.stored() & (self.tickets | self.tasks) == self.kept
        assert self.tasks.intersection(self.place.published()) <= self.kept

    async def fail(self, how: str) -> None:
        raise Stop

    async def attempt(self, how: str) -> None:
        """Catches what fails in it."""
        with suppress(Stop):
            await self.body(how)

    async def block(self, how: str) -> None:
        """`with transaction()`: one of Nitro's own, and a savepoint inside of another one."""
        books = self.block_around
        if books is None:
            async with self.transaction(Books(self.kept), "opened"):
                await self.body(how)
        # One in an adopted AsyncSession is no savepoint: what fails in it lets nothing be committed.
        elif self.may_write(books) and not (self.place.awaits and "opened" not in books.guards):
            async with self.transaction(books, "inner"):
                # A savepoint of Nitro's own transaction takes the lock, also when nothing is written in it.
                self.writer = books if "opened" in books.guards else self.writer
                await self.body(how)

    async def own(self, how: str) -> None:
        """A session of the user's own, closed at the end."""
        books = Books(self.kept)
        try:
            async with self.within(self.place.open()) as session:
                self.sessions.append(Own(session, books))
                await self.body(how)
        finally:
            self.sessions.pop()
            self.end(books, commit=False)

    async def elsewhere(self, how: str) -> None:
        """Another thread, which takes no part in what is open here though it has a copy of the context."""
        if self.may_write(None):
            other = Run(self.place, ())
            other.refused = self.refused or bool(self.blocks)
            other.steps, other.kept, other.tickets, other.tasks = self.steps, self.kept, self.tickets, self.tasks
            with ThreadPoolExecutor(1) as thread:
                thread.submit(contextvars.copy_context().run, at_once, other.body()).result(PATIENCE)

    # Steps of a session of the user's own

    async def add(self, how: str, own: Own) -> None:
        """A new entity that is added to it, and an emit about it."""
        if self.may_wait_for(own) and self.may_write(own.books):
            ticket = Ticket()
            own.session.add(ticket)
            own.added.append(ticket)
            if how == "flushed":
                await settled(own.session.flush())
            await self.emit(own.books, ticket, new=ticket)

    async def again(self, how: str, own: Own) -> None:
        """An emit about an entity that it has committed: that waits for it if it was begun or has written."""
        known = [one for one in own.added if one in own.session and not inspect(one).expired and one.id in self.kept]
        waits = own.books.explicit or own.books.has_written
        # What the contract does not say: whether one waits that nobody has begun and whose writes were rolled back.
        clear = self.may_wait_for(own) if waits else not own.books.scopes
        books = self.block_around or (own.books if waits else None)
        if known and clear and self.may_write(books):
            await self.emit(books, "till", about=known[-1])

    async def flush(self, how: str, own: Own) -> None:
        await settled(own.session.flush())

    async def begin(self, how: str, own: Own) -> None:
        if not own.books.scopes:
            await settled(own.session.begin())
            own.books.begin(explicit=True)

    async def commit(self, how: str, own: Own) -> None:
        if own.books.may_end:
            await settled(own.session.commit())
            self.end(own.books, commit=True)

    async def rollback(self, how: str, own: Own) -> None:
        if own.books.may_end:
            await settled(own.session.rollback())
            self.end(own.books, commit=False)

    async def close(self, how: str, own: Own) -> None:
        if own.books.may_end:
            await settled(own.session.close())
            self.end(own.books, commit=False)

    async def savepoint(self, how: str, own: Own) -> None:
        """A loose one; a `transaction()` that is a savepoint itself wants what is begun in it to be ended in it."""
        if self.may_have_savepoint(own) and own.books.guards[-1:] != ["inner"]:
            await settled(own.session.begin_nested())
            own.books.savepoint(loose=True)

    async def release(self, how: str, own: Own) -> None:
        """Commits a loose savepoint."""
        if own.books.scopes and own.books.scopes[-1].loose:
            await settled(own.session.get_nested_transaction().commit())
            own.books.release()

    async def undo(self, how: str, own: Own) -> None:
        """Rolls a loose savepoint back."""
        if own.books.scopes and own.books.scopes[-1].loose:
            await settled(own.session.get_nested_transaction().rollback())
            own.books.scopes.pop()

    async def adopt(self, how: str, own: Own) -> None:
        """`with transaction(session)`, which is a savepoint in what was begun already."""
        guard = "inner" if own.books.scopes else "adopted"
        async with self.transaction(own.books, guard, own.session):
            await self.body(how)

    async def nested(self, how: str, own: Own) -> None:
        """`with session.begin_nested()`."""
        if self.may_have_savepoint(own):
            with own.books.part("nested") as depth:
                async with self.within(own.session.begin_nested()) as savepoint:
                    await self.body(how)
                    if how == "undone":
                        await settled(savepoint.rollback())
                        own.books.forget(depth)

    async def begun(self, how: str, own: Own) -> None:
        """`with session.begin()`."""
        if not own.books.scopes:
            try:
                with own.books.whole("begun") as depth:
                    async with self.within(own.session.begin()) as whole:
                        await self.body(how)
                        if how == "undone":
                            await settled(whole.rollback())
                            own.books.forget(depth)
            finally:
                self.end(own.books, commit=True)

    # What the steps are made of

    @property
    def block_around(self) -> Books | None:
        return self.blocks[-1] if self.blocks else None

    def may_write(self, books: Books | None) -> bool:
        """Whether no other session of this thread has the lock; None is a commit of its own."""
        return not self.place.exclusive or self.writer is None or self.writer is books

    def may_wait_for(self, own: Own) -> bool:
        """Whether the contract says which commit decides: of two transactions around an emit it does not."""
        return self.block_around is None or self.block_around is own.books

    def may_have_savepoint(self, own: Own) -> bool:
        """Whether it is one in the user's own transaction: whether that has sent something, where it must have."""
        sent = self.tickets if self.place.awaits else self.tickets | self.tasks
        return not self.place.legacy or any(sent.intersection(scope.ids) for scope in own.books.scopes)

    async def emit(self, books: Books | None, *args: Any, new: Ticket | None = None, **kwargs: Any) -> None:
        """Emit, and write in the books that this, and the new ticket, must be committed along with."""
        how = self.place.event.emit_async if self.place.awaits else self.place.event.emit
        if self.refused and books is None:
            with pytest.raises(TransactionError, match="another thread"):
                await settled(how(*args, **kwargs))
            return
        emission: Emission = await settled(how(*args, **kwargs))
        ids = [*emission.offloaded.values()]
        assert len(ids) == 1
        self.tasks.update(ids)
        if new is not None:
            ids.append(new.id)
            self.tickets.add(new.id)
        if books is None:
            self.kept.update(ids)
        else:
            books.write(ids)
            self.writer = books

    def end(self, books: Books, *, commit: bool) -> None:
        """The session has ended its transaction, if it was in one, and has the lock no longer."""
        books.end(commit=commit)
        self.writer = None if self.writer is books else self.writer

    @asynccontextmanager
    async def transaction(self, books: Books, guard: str, *session: Any) -> AsyncIterator[None]:
        """A `transaction()` block, and the same for its books."""
        self.blocks.append(books)
        try:
            with books.part(guard) if guard == "inner" else books.whole(guard):
                async with self.within(transaction(*session)):
                    yield
        finally:
            self.blocks.pop()
            if guard != "inner":
                self.end(books, commit=True)

    @asynccontextmanager
    async def within(self, block: Any) -> AsyncIterator[Any]:
        """`async with` where there is an `AsyncSession`, else `with`."""
        if self.place.awaits:
            async with block as value:
                yield value
        else:
            with block as value:
                yield value


async def settled(value: Any) -> Any:
    """The value, when it is there."""
    return await value if isawaitable(value) else value


def at_once(coroutine: Coroutine[Any, Any, Run]) -> Run:
    """Run what never waits, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def check(place: Place, *runs: Run) -> None:
    """What they have committed, and nothing else, is there and was published, once."""
    kept = set().union(*(run.kept for run in runs))
    tasks = set().union(*(run.tasks for run in runs))
    assert place.stored() == kept
    assert sorted(place.published()) == sorted(kept & tasks)


def check_threads(place: Place, each: list[list[str]]) -> None:
    """Perform each program in a thread of its own, then check them all."""
    place.clear()
    with ThreadPoolExecutor(len(each)) as threads:
        runs = threads.map(lambda program: at_once(Run(place, program).perform()), each, timeout=PATIENCE)
        check(place, *runs)


# Tests

skipped = [HealthCheck.function_scoped_fixture]
ON_SQLITE = pytest.mark.parametrize("place", ["bound", "url"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("place", ["postgresql"], indirect=True)
BOUND = pytest.mark.parametrize("place", ["bound"], indirect=True)


def examples(few: int, many: int) -> settings:
    """So many programs, or as many as NITRO_CHAOS=full wants."""
    return settings(max_examples=many if FULL else few, deadline=None, suppress_health_check=skipped)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, evt: Event, app: Celery, sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """`bound`: one engine, the user's, for all; `url`: Nitro has one of its own; or one engine on PostgreSQL."""
    on(evt, offload=True, name="shop.ticket")(lambda sender, **kwargs: None)
    on_server = request.param == "postgresql"
    url = request.getfixturevalue("database_server") if on_server else f"sqlite:///{tmp_path / 'programs.db'}"
    engine = create_engine(url)
    if request.param == "url":
        monkeypatch.setenv("NITRO_DB_URL", url)
    else:
        bind(app, engine)
    if not on_server:
        spare_the_disk(*{engine, database.engine()})
    database.create_tables()
    yield Place(evt, sent, engine, exclusive=not on_server, legacy=request.param == "url")
    engine.dispose()


@pytest.fixture
def awaited(place: Place, tmp_path: Path) -> Place:
    """The place as a program finds it that is async throughout."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'programs.db'}", poolclass=NullPool)
    spare_the_disk(engine.sync_engine)
    return replace(place, engine=engine, awaits=True, legacy=True)


def spare_the_disk(*engines: Engine) -> None:
    for engine in engines:
        event.listen(engine, "connect", lambda driver, _record: driver.execute("PRAGMA synchronous=OFF"))


@ON_SQLITE
@examples(75, 5000)
@given(program=programs)
def test_what_is_committed_is_open_and_published(place: Place, program: list[str]) -> None:
    """The open deliveries and the user's rows are those of the committed emits, and those were published."""
    place.clear()
    check(place, at_once(Run(place, program).perform()))


@pytest.mark.server
@ON_POSTGRESQL
@examples(30, 1000)
@given(program=programs)
def test_sessions_that_write_at_the_same_time_keep_apart(place: Place, program: list[str]) -> None:
    """The same where a session need not wait for another one to end its transaction."""
    place.clear()
    check(place, at_once(Run(place, program).perform()))


@BOUND
@examples(10, 1000)
@given(each=st.lists(programs, min_size=2, max_size=3))
def test_threads_keep_apart(place: Place, each: list[list[str]]) -> None:
    """The same when several threads each perform a program of their own."""
    check_threads(place, each)


@pytest.mark.server
@ON_POSTGRESQL
@examples(8, 500)
@given(each=st.lists(programs, min_size=2, max_size=3))
def test_threads_that_write_at_the_same_time_keep_apart(place: Place, each: list[list[str]]) -> None:
    """The same where threads need not wait for one another either."""
    check_threads(place, each)


@BOUND
@examples(30, 1000)
@given(program=some(STEPS))
def test_async_sessions_do_the_same(awaited: Place, program: list[str]) -> None:
    """With `async with transaction(session)` and `emit_async`."""
    awaited.clear()
    check(awaited, asyncio.run(Run(awaited, program).perform()))


# What programs have found


@BOUND
@pytest.mark.parametrize("block", ["adopt", "begun"])
def test_async_session_may_leave_a_savepoint_open(awaited: Place, block: str) -> None:
    """The commit around it commits it, as in a Session, and the row of what is published is there."""
    run = Run(awaited, ["own", block, "add", "savepoint"])
    check(awaited, asyncio.run(run.perform()))


@BOUND
def test_async_block_in_a_transaction_that_has_sent_nothing_is_a_savepoint(awaited: Place) -> None:
    """The user's rollback takes it back, as in a Session."""
    run = Run(awaited, ["own", "begin", "adopt", "add", "end", "rollback"])
    check(awaited, asyncio.run(run.perform()))


@BOUND
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_async_block_lets_the_user_end_its_transaction(awaited: Place, end: str) -> None:
    """As in a Session, and what is raised in it later comes out of it."""
    run = Run(awaited, ["own", "adopt failing", "add", end])
    check(awaited, asyncio.run(run.perform()))


@BOUND
def test_async_session_in_a_plain_with_can_be_rolled_back(awaited: Place) -> None:
    """Also when nothing but an emit has happened in it; a later commit is none of its business."""

    async def main() -> None:
        async with awaited.open() as session:
            with transaction(session):
                awaited.event.emit("till")
            await session.rollback()
            await session.commit()

    asyncio.run(main())
    assert awaited.stored() == set()
    assert awaited.published() == []


@pytest.mark.parametrize(
    ("place", "program"),
    [
        pytest.param("bound", ["own", "add"], id="first emit of a process"),
        pytest.param("url", ["tell", "own", "adopt", "block", "add"], id="any emit"),
    ],
    indirect=["place"],
)
def test_nobody_is_locked_out_by_another_commit(place: Place, program: list[str]) -> None:
    """Another thread may commit while a session gets ready to write its first row."""
    first = threading.Lock()

    @event.listens_for(place.engine, "before_cursor_execute")
    def commit_elsewhere(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO") and first.acquire(blocking=False):
            with ThreadPoolExecutor(1) as thread:
                thread.submit(Ticket().save).result(PATIENCE)

    at_once(Run(place, program).perform())
