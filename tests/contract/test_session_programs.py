"""Random programs over sessions and transactions commit what a plain model commits: contract section 7.

A program is a list of steps, such as `own, add, nested, add, fail`. `Run` performs it with Nitro and SQLAlchemy, and
applies each step to a model that uses neither: `SessionModel`, the open scopes of a session and the ids written in
each. NITRO_CHAOS=full makes it thousands of programs.
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
from sqlalchemy import Engine, NullPool, create_engine, delete, event, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import Session

from nitro.domain.entities.base_entity import Entity
from nitro.errors import TransactionError
from nitro.infrastructure import database
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Emission, Event, on
from nitro.infrastructure.offload import bind
from support import outbox

SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432"
PATIENCE = 120.0
FULL = os.environ.get("NITRO_CHAOS") == "full"

Sent = Callable[..., list[Any]]


class Ticket(Entity, table=True):
    """A row of the user."""

    __tablename__ = "session_program_ticket"

    note: str = ""


class Stop(Exception):
    """The exception of a failing step."""


OPENING = ("own", "block", "adopt", "adopt outer", "nested", "nested undone", "begun", "begun undone", "attempt")
"""Steps with a body: the steps up to `end`. A `failing` one raises at its end, and the exception is caught around it.
"""

OF_SESSIONS = ("add", "flush", "again", "commit", "rollback", "close", "begin", "savepoint", "release", "undo")
"""Steps of a session that `own` has opened: of the innermost session, or with `outer` of the next one."""

SEQUENCES = (
    "own, add, commit, again",
    "begin, again, rollback, again",
    "savepoint, add, undo",
    "savepoint, add, release",
    "add, close, commit",
)
"""Sequences of steps that random choice rarely produces."""

WEIGHTS = (
    (12, ("end",)),
    (4, ("add", "look")),
    (3, ("own", "add outer", "again", "commit", "save", "block failing")),
    (2, ("block", "tell", "adopt failing", "nested failing", "commit outer", *SEQUENCES)),
    (1, (*OPENING, *OF_SESSIONS, "own failing", "begun failing", "add flushed", "rollback outer", "fail")),
)
STEPS = [step for weight, steps in WEIGHTS for step in steps * weight]


def programs_of(steps: Iterable[str]) -> st.SearchStrategy[list[str]]:
    """Returns a strategy for programs of these steps.

    Most programs are long. They shrink by replacing steps by empty ones.
    """
    sequences = st.lists(st.sampled_from(["", *steps]), min_size=30, max_size=60)
    return sequences.map(lambda drawn: [step for sequence in drawn if sequence for step in sequence.split(", ")])


programs = programs_of([*STEPS, "elsewhere", "elsewhere"])


@dataclass(slots=True)
class Scope:
    """A transaction or a savepoint, and the ids of the rows written in it. A loose one is ended by no `with` block."""

    loose: bool = False
    ids: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class SessionModel:
    """The uncommitted writes of a session by scope; the transaction is the first scope.

    Attributes:
        committed: the set that gets the ids of committed rows.
        explicit: the transaction was begun by a call.
        guards: the enclosing blocks that end a scope of this session, the innermost last.
    """

    committed: set[str]
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
            self.committed.update(written for scope in self.scopes for written in scope.ids)
        self.scopes, self.explicit = [], False

    def roll_back_from(self, depth: int) -> None:
        """Rolls back the scopes from this depth on; the enclosing block ends them."""
        for scope in self.scopes[depth:]:
            scope.ids.clear()

    @contextmanager
    def transaction_block(self, guard: str) -> Iterator[int]:
        """Commits at the end of the block, or rolls back after an exception; yields its depth."""
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
    def savepoint_block(self, guard: str) -> Iterator[int]:
        """Makes the block a savepoint, and ends loose savepoints inside it; yields its depth."""
        self.savepoint(loose=False)
        depth = len(self.scopes) - 1
        self.guards.append(guard)
        try:
            yield depth
        except BaseException:
            self.roll_back_from(depth)
            raise
        finally:
            while len(self.scopes) > depth:
                self.release()
            self.guards.pop()

    @property
    def may_end(self) -> bool:
        """Whether the user may commit, roll back and close here; a block that does so itself forbids it."""
        return set(self.guards) <= {"adopted"}

    @property
    def has_written(self) -> bool:
        return any(scope.ids for scope in self.scopes)


@dataclass(slots=True)
class Place:
    """The database and the event of a program.

    Attributes:
        engine: the engine of the user's sessions, which are `AsyncSession` if `awaits` is set.
        exclusive: the database has one writer at a time. Two writing sessions of one thread would deadlock, so that a
    step that would wait for another session is left out.
        legacy: the driver takes a savepoint that begins a transaction for the whole transaction, so that such
    savepoints are left out.
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
        """Returns a session of the user."""
        return (AsyncSession if self.awaits else Session)(self.engine, expire_on_commit=False)

    def stored(self) -> set[str]:
        """Returns the ids of tickets and open deliveries, as another connection sees them."""
        with database.engine().connect() as connection:
            return {*connection.scalars(select(Ticket.id)), *outbox.open_deliveries(connection)}

    def published(self) -> list[str]:
        """Returns the ids of all messages that were ever published."""
        with self._lock:
            self._published += [message.id for message in self.sent()]
            return list(self._published)

    def clear(self) -> None:
        """Deletes all rows and messages."""
        self.published()
        self._published.clear()
        with database.engine().begin() as connection:
            outbox.delete_all(connection)
            connection.execute(delete(Ticket))


@dataclass(slots=True)
class UserSession:
    """A session of the user, its model, and the tickets that were ever added to it."""

    session: Any
    model: SessionModel
    added: list[Ticket] = field(default_factory=list)


class Run:
    """A thread that performs a program, and the model of its commits.

    The methods are coroutines that wait only for an `AsyncSession`.

    Attributes:
        steps: the remaining steps.
        committed: ids of the tickets and deliveries that must be stored.
        tickets: ids of all tickets, also of rolled-back ones; `tasks` are the ids of deliveries.
        sessions: the open sessions of the user.
        blocks: the model of each open `transaction()`.
        refused: the context has a `transaction()` of another thread, so that nothing commits by itself here.
        writer: the model of the session that has the write lock.
    """

    def __init__(self, place: Place, steps: Iterable[str]) -> None:
        self.place = place
        self.steps = deque(steps)
        self.committed: set[str] = set()
        self.tickets: set[str] = set()
        self.tasks: set[str] = set()
        self.sessions: list[UserSession] = []
        self.blocks: list[SessionModel] = []
        self.refused = False
        self.writer: SessionModel | None = None

    async def perform(self) -> Run:
        """Performs the whole program; a failing step ends at most its block."""
        while self.steps:
            await self.attempt("")
        return self

    async def body(self, how: str = "") -> None:
        """Performs the steps up to the end of a block."""
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

    async def save(self, how: str) -> None:
        """Saves an entity and emits about it."""
        if self.refused and self.block_around is None:
            with pytest.raises(TransactionError, match="another thread"):
                Ticket().save()
        elif self.may_write(self.block_around):
            ticket = Ticket().save()
            await self.emit(self.block_around, ticket, new=ticket)

    async def tell(self, how: str) -> None:
        """Emits without an entity."""
        if self.may_write(self.block_around):
            await self.emit(self.block_around, "till")

    async def look(self, how: str) -> None:
        """Compares the committed rows with the model; no other message has left."""
        assert self.place.stored() & (self.tickets | self.tasks) == self.committed
        assert self.tasks.intersection(self.place.published()) <= self.committed

    async def fail(self, how: str) -> None:
        raise Stop

    async def attempt(self, how: str) -> None:
        """Performs a block and catches its failure."""
        with suppress(Stop):
            await self.body(how)

    async def block(self, how: str) -> None:
        """`with transaction()`: a transaction of Nitro, or a savepoint inside another one."""
        model = self.block_around
        if model is None:
            async with self.transaction(SessionModel(self.committed), "opened"):
                await self.body(how)
        # A block in an adopted AsyncSession is no savepoint: its failure prevents the commit.
        elif self.may_write(model) and not (self.place.awaits and "opened" not in model.guards):
            async with self.transaction(model, "inner"):
                # A savepoint of Nitro's own transaction takes the lock even without a write.
                self.writer = model if "opened" in model.guards else self.writer
                await self.body(how)

    async def own(self, how: str) -> None:
        """Opens a session of the user, and closes it at the end."""
        model = SessionModel(self.committed)
        try:
            async with self.within(self.place.open()) as session:
                self.sessions.append(UserSession(session, model))
                await self.body(how)
        finally:
            self.sessions.pop()
            self.end(model, commit=False)

    async def elsewhere(self, how: str) -> None:
        """Performs a block in another thread, which joins no open transaction despite its copy of the context."""
        if self.may_write(None):
            other = Run(self.place, ())
            other.refused = self.refused or bool(self.blocks)
            other.steps, other.committed, other.tickets, other.tasks = (
                self.steps,
                self.committed,
                self.tickets,
                self.tasks,
            )
            with ThreadPoolExecutor(1) as thread:
                thread.submit(contextvars.copy_context().run, run_synchronously, other.body()).result(PATIENCE)

    async def add(self, how: str, own: UserSession) -> None:
        """Adds a new entity to the session and emits about it."""
        if self.may_wait_for(own) and self.may_write(own.model):
            ticket = Ticket()
            own.session.add(ticket)
            own.added.append(ticket)
            if how == "flushed":
                await resolve(own.session.flush())
            await self.emit(own.model, ticket, new=ticket)

    async def again(self, how: str, own: UserSession) -> None:
        """Emits about an entity that the session has committed; a begun or written session is waited for."""
        stored = [
            ticket
            for ticket in own.added
            if ticket in own.session and not inspect(ticket).expired and ticket.id in self.committed
        ]
        waits = own.model.explicit or own.model.has_written
        # The contract leaves open whether an emit waits for a session without `begin()` after an undone savepoint.
        is_defined = self.may_wait_for(own) if waits else not own.model.scopes
        model = self.block_around or (own.model if waits else None)
        if stored and is_defined and self.may_write(model):
            await self.emit(model, "till", about=stored[-1])

    async def flush(self, how: str, own: UserSession) -> None:
        await resolve(own.session.flush())

    async def begin(self, how: str, own: UserSession) -> None:
        if not own.model.scopes:
            await resolve(own.session.begin())
            own.model.begin(explicit=True)

    async def commit(self, how: str, own: UserSession) -> None:
        if own.model.may_end:
            await resolve(own.session.commit())
            self.end(own.model, commit=True)

    async def rollback(self, how: str, own: UserSession) -> None:
        if own.model.may_end:
            await resolve(own.session.rollback())
            self.end(own.model, commit=False)

    async def close(self, how: str, own: UserSession) -> None:
        if own.model.may_end:
            await resolve(own.session.close())
            self.end(own.model, commit=False)

    async def savepoint(self, how: str, own: UserSession) -> None:
        """Begins a loose savepoint; inside a `transaction()` that is a savepoint, only if the block can end it."""
        if self.may_have_savepoint(own) and own.model.guards[-1:] != ["inner"]:
            await resolve(own.session.begin_nested())
            own.model.savepoint(loose=True)

    async def release(self, how: str, own: UserSession) -> None:
        """Commits a loose savepoint."""
        if own.model.scopes and own.model.scopes[-1].loose:
            await resolve(own.session.get_nested_transaction().commit())
            own.model.release()

    async def undo(self, how: str, own: UserSession) -> None:
        """Rolls a loose savepoint back."""
        if own.model.scopes and own.model.scopes[-1].loose:
            await resolve(own.session.get_nested_transaction().rollback())
            own.model.scopes.pop()

    async def adopt(self, how: str, own: UserSession) -> None:
        """`with transaction(session)`, a savepoint if the session is in a transaction already."""
        guard = "inner" if own.model.scopes else "adopted"
        async with self.transaction(own.model, guard, own.session):
            await self.body(how)

    async def nested(self, how: str, own: UserSession) -> None:
        """`with session.begin_nested()`."""
        if self.may_have_savepoint(own):
            with own.model.savepoint_block("nested") as depth:
                async with self.within(own.session.begin_nested()) as savepoint:
                    await self.body(how)
                    if how == "undone":
                        await resolve(savepoint.rollback())
                        own.model.roll_back_from(depth)

    async def begun(self, how: str, own: UserSession) -> None:
        """`with session.begin()`."""
        if not own.model.scopes:
            try:
                with own.model.transaction_block("begun") as depth:
                    async with self.within(own.session.begin()) as transaction_of_block:
                        await self.body(how)
                        if how == "undone":
                            await resolve(transaction_of_block.rollback())
                            own.model.roll_back_from(depth)
            finally:
                self.end(own.model, commit=True)

    @property
    def block_around(self) -> SessionModel | None:
        return self.blocks[-1] if self.blocks else None

    def may_write(self, model: SessionModel | None) -> bool:
        """Whether no other session of this thread has the lock; None stands for a commit without a session."""
        return not self.place.exclusive or self.writer is None or self.writer is model

    def may_wait_for(self, own: UserSession) -> bool:
        """Whether the contract defines which commit decides; for an emit inside two transactions it does not."""
        return self.block_around is None or self.block_around is own.model

    def may_have_savepoint(self, own: UserSession) -> bool:
        """Whether a savepoint is inside the user's transaction; `legacy` drivers need a statement before it."""
        sent = self.tickets if self.place.awaits else self.tickets | self.tasks
        return not self.place.legacy or any(sent.intersection(scope.ids) for scope in own.model.scopes)

    async def emit(self, model: SessionModel | None, *args: Any, new: Ticket | None = None, **kwargs: Any) -> None:
        """Emits, and records in the model that the delivery and the new ticket must be committed with it."""
        emit = self.place.event.emit_async if self.place.awaits else self.place.event.emit
        if self.refused and model is None:
            with pytest.raises(TransactionError, match="another thread"):
                await resolve(emit(*args, **kwargs))
            return
        emission: Emission = await resolve(emit(*args, **kwargs))
        ids = [*emission.offloaded.values()]
        assert len(ids) == 1
        self.tasks.update(ids)
        if new is not None:
            ids.append(new.id)
            self.tickets.add(new.id)
        if model is None:
            self.committed.update(ids)
        else:
            model.write(ids)
            self.writer = model

    def end(self, model: SessionModel, *, commit: bool) -> None:
        """Ends the session's transaction in the model and releases the lock."""
        model.end(commit=commit)
        self.writer = None if self.writer is model else self.writer

    @asynccontextmanager
    async def transaction(self, model: SessionModel, guard: str, *session: Any) -> AsyncIterator[None]:
        """Opens a `transaction()` block, and the same block in its model."""
        self.blocks.append(model)
        try:
            with model.savepoint_block(guard) if guard == "inner" else model.transaction_block(guard):
                async with self.within(transaction(*session)):
                    yield
        finally:
            self.blocks.pop()
            if guard != "inner":
                self.end(model, commit=True)

    @asynccontextmanager
    async def within(self, block: Any) -> AsyncIterator[Any]:
        """Enters the block with `async with` for an `AsyncSession`, otherwise with `with`."""
        if self.place.awaits:
            async with block as value:
                yield value
        else:
            with block as value:
                yield value


async def resolve(value: Any) -> Any:
    """Returns the value, awaited if it is awaitable."""
    return await value if isawaitable(value) else value


def run_synchronously(coroutine: Coroutine[Any, Any, Run]) -> Run:
    """Runs a coroutine that never waits, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def check(place: Place, *runs: Run) -> None:
    """Asserts that the committed rows are stored, and that their deliveries were published once."""
    committed = set().union(*(run.committed for run in runs))
    tasks = set().union(*(run.tasks for run in runs))
    assert place.stored() == committed
    assert sorted(place.published()) == sorted(committed & tasks)


def check_threads(place: Place, each: list[list[str]]) -> None:
    """Performs each program in its own thread, then checks them together."""
    place.clear()
    with ThreadPoolExecutor(len(each)) as threads:
        runs = threads.map(lambda program: run_synchronously(Run(place, program).perform()), each, timeout=PATIENCE)
        check(place, *runs)


skipped = [HealthCheck.function_scoped_fixture]
ON_SQLITE = pytest.mark.parametrize("place", ["bound", "url"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("place", ["postgresql"], indirect=True)
BOUND = pytest.mark.parametrize("place", ["bound"], indirect=True)


def examples(few: int, many: int) -> settings:
    """Returns settings with the smaller or, for NITRO_CHAOS=full, the larger number of programs."""
    return settings(max_examples=many if FULL else few, deadline=None, suppress_health_check=skipped)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, evt: Event, app: Celery, sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """The databases: `bound` has one engine for user and Nitro, `url` two, `postgresql` one on the server."""
    on(evt, offload=True, name="shop.ticket")(lambda sender, **kwargs: None)
    on_server = request.param == "postgresql"
    url = request.getfixturevalue("database_server") if on_server else f"sqlite:///{tmp_path / 'programs.db'}"
    engine = create_engine(url)
    if request.param == "url":
        monkeypatch.setenv("NITRO_DB_URL", url)
    else:
        bind(app, engine)
    if not on_server:
        switch_off_fsync(*{engine, database.engine()})
    database.create_tables()
    yield Place(evt, sent, engine, exclusive=not on_server, legacy=request.param == "url")
    engine.dispose()


@pytest.fixture
def awaited(place: Place, tmp_path: Path) -> Place:
    """The place with async sessions."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'programs.db'}", poolclass=NullPool)
    switch_off_fsync(engine.sync_engine)
    return replace(place, engine=engine, awaits=True, legacy=True)


def switch_off_fsync(*engines: Engine) -> None:
    for engine in engines:
        event.listen(engine, "connect", lambda driver, _record: driver.execute("PRAGMA synchronous=OFF"))


@ON_SQLITE
@examples(75, 5000)
@given(program=programs)
def test_what_is_committed_is_open_and_published(place: Place, program: list[str]) -> None:
    """Open deliveries and rows are those of the committed emits, and their messages were published."""
    place.clear()
    check(place, run_synchronously(Run(place, program).perform()))


@pytest.mark.server
@ON_POSTGRESQL
@examples(30, 1000)
@given(program=programs)
def test_sessions_that_write_at_the_same_time_keep_apart(place: Place, program: list[str]) -> None:
    """Sessions that write at the same time commit as the model does."""
    place.clear()
    check(place, run_synchronously(Run(place, program).perform()))


@BOUND
@examples(10, 1000)
@given(each=st.lists(programs, min_size=2, max_size=3))
def test_threads_keep_apart(place: Place, each: list[list[str]]) -> None:
    """Threads that perform programs of their own commit as the model does."""
    check_threads(place, each)


@pytest.mark.server
@ON_POSTGRESQL
@examples(8, 500)
@given(each=st.lists(programs, min_size=2, max_size=3))
def test_threads_that_write_at_the_same_time_keep_apart(place: Place, each: list[list[str]]) -> None:
    """Threads that write at the same time commit as the model does."""
    check_threads(place, each)


@BOUND
@examples(30, 1000)
@given(program=programs_of(STEPS))
def test_async_sessions_do_the_same(awaited: Place, program: list[str]) -> None:
    """Programs with `async with transaction(session)` and `emit_async` commit as the model does."""
    awaited.clear()
    check(awaited, asyncio.run(Run(awaited, program).perform()))


@BOUND
@pytest.mark.parametrize("block", ["adopt", "begun"])
def test_async_session_may_leave_a_savepoint_open(awaited: Place, block: str) -> None:
    """An open savepoint of an AsyncSession is committed by the enclosing commit."""
    run = Run(awaited, ["own", block, "add", "savepoint"])
    check(awaited, asyncio.run(run.perform()))


@BOUND
def test_async_block_in_a_transaction_that_has_sent_nothing_is_a_savepoint(awaited: Place) -> None:
    """A user's rollback drops a `transaction(session)` block in a transaction without statements."""
    run = Run(awaited, ["own", "begin", "adopt", "add", "end", "rollback"])
    check(awaited, asyncio.run(run.perform()))


@BOUND
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_async_block_lets_the_user_end_its_transaction(awaited: Place, end: str) -> None:
    """An AsyncSession's transaction may be ended inside an adopted block; a later exception propagates."""
    run = Run(awaited, ["own", "adopt failing", "add", end])
    check(awaited, asyncio.run(run.perform()))


@BOUND
def test_async_session_in_a_plain_with_can_be_rolled_back(awaited: Place) -> None:
    """A rollback drops an emit in an AsyncSession without other writes; a later commit does not send it."""

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
def test_another_commit_locks_no_session_out(place: Place, program: list[str]) -> None:
    """A session writes its first row although another thread commits just before."""
    first = threading.Lock()

    @event.listens_for(place.engine, "before_cursor_execute")
    def commit_elsewhere(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO") and first.acquire(blocking=False):
            with ThreadPoolExecutor(1) as thread:
                thread.submit(Ticket().save).result(PATIENCE)

    run_synchronously(Run(place, program).perform())
