"""The engine of the process, its tables, and `transaction()`."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError
from sqlalchemy.pool import StaticPool
from sqlmodel import Field, Session, SQLModel, select

from nitro.errors import TransactionError
from nitro.infrastructure import database as db
from nitro.infrastructure import scope


class DbNote(SQLModel, table=True):
    """A row with a text."""

    id: int | None = Field(default=None, primary_key=True)
    body: str = Field(unique=True)


class DbPage(SQLModel, table=True):
    """A row that refers to a note."""

    id: int | None = Field(default=None, primary_key=True)
    note_id: int = Field(foreign_key="dbnote.id")


def bodies() -> list[str]:
    """Returns the bodies that are committed, read with a separate session."""
    with Session(db.engine()) as session:
        return sorted(session.exec(select(DbNote.body)))


def add(session: Session, body: str) -> None:
    session.add(DbNote(body=body))
    session.flush()


def pragma(name: str) -> object:
    with db.engine().connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


@pytest.fixture
def statements(database: Path) -> list[str]:
    """The SQL that the engine sends."""
    sent: list[str] = []

    @event.listens_for(db.engine(), "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    return sent


# The engine


def test_engine_is_one_for_the_process(database: Path) -> None:
    """The engine is the same at every call, and has the URL of the settings."""
    assert db.engine() is db.engine()
    assert db.engine().url.database == str(database)


def test_engine_is_made_once_by_many_threads(database: Path) -> None:
    """Threads that ask at the same moment get the same engine."""
    with ThreadPoolExecutor(8) as threads:
        assert len({id(engine) for engine in threads.map(lambda _: db.engine(), range(32))}) == 1


def test_reset_forgets_the_engine(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are read again after a reset."""
    db.engine()
    monkeypatch.setenv("NITRO_DB_URL", f"sqlite:///{database}.other")
    db.reset()
    assert db.engine().url.database == f"{database}.other"


def test_engine_of_the_users_own_replaces_it(database: Path, tmp_path: Path) -> None:
    """`use_engine` makes a user's engine the one of the process, with Nitro's SQLite settings."""
    own = create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    db.use_engine(own)
    assert db.engine() is own
    assert pragma("journal_mode") == "wal"


def test_reset_leaves_the_users_engine_open(database: Path) -> None:
    """Connections of an engine that the user made are the user's to close."""
    own = create_engine("sqlite://", poolclass=StaticPool)
    db.use_engine(own)
    with own.begin() as connection:
        connection.execute(text("CREATE TABLE kept (id)"))
    db.reset()
    assert inspect(own).has_table("kept")


def test_relative_file_stays_the_same_after_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is resolved in the folder of the first use."""
    monkeypatch.setenv("NITRO_DB_URL", "sqlite:///here.db")
    monkeypatch.chdir(tmp_path)
    db.reset()
    assert db.engine().url.database == str(tmp_path / "here.db")
    db.reset()


@pytest.mark.parametrize(
    ("name", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 30_000)],
)
def test_pragmas_are_on(database: Path, name: str, value: object) -> None:
    """WAL, full synchronisation, foreign keys and a long busy timeout are set on every connection."""
    assert pragma(name) == value


def test_foreign_keys_are_enforced(database: Path) -> None:
    """A row that refers to a missing row is refused."""
    with pytest.raises(IntegrityError), db.transaction() as session:
        session.add(DbPage(note_id=404))


def test_lower_knows_all_of_unicode(database: Path) -> None:
    """`lower` in SQLite is not limited to ASCII."""
    with db.engine().connect() as connection:
        assert connection.execute(text("SELECT lower('ÄÉ')")).scalar() == "äé"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_memory_is_one_database_for_all_threads(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A reader during an open transaction sees only committed rows, and does not end the transaction."""
    monkeypatch.setenv("NITRO_DB_URL", url)
    db.reset()
    with db.transaction() as session:
        add(session, "shared")
        assert bodies() == []
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(bodies).result() == ["shared"]
    db.reset()
    assert bodies() == []
    db.reset()


def test_memory_leaves_nothing_behind() -> None:
    """The file of a memory database is removed at the end of its process, and not of a forked child."""
    source = """
        import os, sys
        from nitro.infrastructure.database import engine, write_connection
        with write_connection():
            place = engine().url.database
        if not os.fork():
            sys.exit()
        os.wait()
        assert os.path.exists(place)
        print(place)
    """
    environ = {**os.environ, "NITRO_DB_URL": "sqlite://"}
    done = subprocess.run(
        [sys.executable, "-c", dedent(source)], env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    assert not Path(done.stdout.strip()).parent.exists()


def test_writing_takes_the_lock_at_once(statements: list[str]) -> None:
    """Transactions of Nitro's own begin IMMEDIATE."""
    with db.transaction() as session:
        session.exec(select(DbNote)).all()
    assert "BEGIN IMMEDIATE" in statements
    assert "BEGIN DEFERRED" not in statements


def test_reading_takes_no_lock(statements: list[str]) -> None:
    """Reads, and a session of the user's own, begin DEFERRED."""
    bodies()
    statements.clear()
    with db.read_session() as session:
        session.exec(select(DbNote)).all()
    assert statements[0] == "BEGIN DEFERRED"


def test_four_writing_threads_wait_for_one_another(database: Path) -> None:
    """Reading and then writing in one transaction never fails with "database is locked"."""

    def count_up(thread: int) -> None:
        for step in range(15):
            with db.transaction() as session:
                seen = len(session.exec(select(DbNote)).all())
                add(session, f"{thread}-{step}-{seen}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count_up, range(4)))
    assert sorted(int(body.rsplit("-")[-1]) for body in bodies()) == list(range(60))


def test_upgrading_a_read_lock_would_fail(database: Path) -> None:
    """A deferred transaction that reads first cannot write after another commit; BEGIN IMMEDIATE avoids this."""
    bodies()
    with Session(db.engine()) as late:
        late.exec(select(DbNote)).all()
        with db.transaction() as session:
            add(session, "first")
        with pytest.raises(OperationalError, match="locked"):
            add(late, "second")


# Tables


def test_tables_appear_on_first_use(database: Path) -> None:
    """SQLite needs no command: the first use creates the tables."""
    assert bodies() == []


def test_class_declared_later_gets_its_table(database: Path) -> None:
    """A class that is declared after the first use is noticed."""
    bodies()

    class DbLate(SQLModel, table=True):
        id: int = Field(primary_key=True)

    with Session(db.engine()) as session:
        assert session.exec(select(DbLate)).all() == []


def test_class_declared_in_a_transaction_gets_its_table_there(database: Path) -> None:
    """The table is created on the connection of the open transaction, which holds the lock."""
    with db.transaction() as session:
        add(session, "before")

        class DbLater(SQLModel, table=True):
            id: int = Field(primary_key=True)

        db.ensure_tables(session)
        session.add(DbLater(id=1))
    with Session(db.engine()) as session:
        assert len(session.exec(select(DbLater)).all()) == 1


def test_table_created_in_a_rolled_back_transaction_is_created_again(database: Path) -> None:
    """The rollback removes the table, so the next use creates it."""
    bodies()
    with pytest.raises(ZeroDivisionError), db.transaction() as session:
        add(session, "before")

        class DbLatest(SQLModel, table=True):
            id: int = Field(primary_key=True)

        db.ensure_tables(session)
        raise ZeroDivisionError
    with db.transaction() as session:
        session.add(DbLatest(id=1))
    assert bodies() == []


CREATE = """
from sqlmodel import Field, Session, SQLModel, select
from nitro.infrastructure.database import engine, transaction
for name in map("Many{}".format, range(20)):
    type(name, (SQLModel,), {"__annotations__": {"id": int}, "__module__": __name__, "id": Field(primary_key=True)},
         table=True)
input()
with transaction() as session:
    session.connection()
print("created")
"""


def test_processes_create_tables_at_once(database: Path) -> None:
    """Concurrent processes that find the tables missing all succeed."""
    starts = [
        subprocess.Popen([sys.executable, "-c", CREATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in starts:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in starts] == ["created\n"] * 3


def test_another_process_sees_the_row(database: Path) -> None:
    """A committed row is visible to every other process."""
    with db.transaction() as session:
        add(session, "for all")
    script = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT body FROM dbnote').fetchall())"
    seen = subprocess.run([sys.executable, "-c", script, database], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[('for all',)]"


@pytest.mark.server
def test_create_tables_elsewhere(database_each: str) -> None:
    """`create_tables()` may run again, on every kind of database."""
    db.create_tables()
    assert bodies() == []


def test_forked_child_has_connections_of_its_own(database: Path) -> None:
    """A child neither uses nor closes the connections of its parent."""
    with db.transaction() as session:
        add(session, "parent")
    child = os.fork()
    if child == 0:
        try:
            fresh = db.engine().pool.status().startswith("Pool size: 5  Connections in pool: 0")
            with db.transaction() as session:
                add(session, "child")
            os._exit(0 if fresh and bodies() == ["child", "parent"] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert bodies() == ["child", "parent"]


def test_forked_child_does_not_join_its_parents_transaction(database: Path) -> None:
    """An open transaction belongs to the process that opened it."""
    with db.transaction() as session:
        add(session, "parent")
        child = os.fork()
        if child == 0:
            os._exit(0 if db.current_transaction() is None else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert bodies() == ["parent"]


# transaction()


def test_transaction_commits_at_the_end(database: Path) -> None:
    """Rows are visible outside after the end only."""
    with db.transaction() as session:
        add(session, "one")
        assert bodies() == []
    assert bodies() == ["one"]


def test_exception_rolls_back(database: Path) -> None:
    """An exception that leaves the block undoes all of it and passes on."""
    with pytest.raises(ZeroDivisionError), db.transaction() as session:
        add(session, "one")
        raise ZeroDivisionError
    assert bodies() == []


def test_objects_are_readable_after_the_commit(database: Path) -> None:
    """Objects are detached after the commit and keep their values."""
    with db.transaction() as session:
        note = DbNote(body="kept")
        session.add(note)
    assert inspect(note).detached
    assert note.body == "kept"


def test_nested_block_joins_the_outer_one(database: Path) -> None:
    """The inner block has the outer session, and the only commit is at the end of the outer block."""
    with db.transaction() as outer:
        with db.transaction() as inner:
            add(inner, "inner")
        assert inner is outer
        assert bodies() == []
    assert bodies() == ["inner"]


def test_outer_failure_undoes_the_inner_block(database: Path) -> None:
    """An inner block that ended well is still part of the whole."""
    with pytest.raises(ZeroDivisionError), db.transaction():
        with db.transaction() as session:
            add(session, "inner")
        raise ZeroDivisionError
    assert bodies() == []


def test_failed_inner_block_is_undone_alone(database: Path) -> None:
    """Only the writes of the failed inner block are gone."""
    with db.transaction() as session:
        add(session, "outer")
        with pytest.raises(ZeroDivisionError), db.transaction():
            add(session, "inner")
            raise ZeroDivisionError
    assert bodies() == ["outer"]


def test_failed_flush_in_an_inner_block_leaves_the_outer_usable(database: Path) -> None:
    """A broken constraint in an inner block leaves the outer block usable."""
    with db.transaction() as session:
        add(session, "same")
        with pytest.raises(IntegrityError), db.transaction():
            add(session, "same")
        add(session, "other")
    assert bodies() == ["other", "same"]


def test_swallowed_flush_failure_is_not_committed_in_silence(database: Path) -> None:
    """A block with a failed flush ends with an error, even if the code swallows it."""
    with pytest.raises(PendingRollbackError), db.transaction() as session:
        add(session, "same")
        with pytest.raises(IntegrityError):
            add(session, "same")
    assert bodies() == []


def test_overlapping_inner_blocks_commit_nothing(database: Path) -> None:
    """Inner blocks of concurrent tasks that overlap are an error of the outer block, even if a task swallows it."""

    async def inner(body: str, started: asyncio.Event, until: asyncio.Event) -> None:
        with db.transaction() as session:
            add(session, body)
            started.set()
            await until.wait()

    async def outer() -> None:
        with db.transaction():
            first, second, never = asyncio.Event(), asyncio.Event(), asyncio.Event()
            one = asyncio.create_task(inner("one", first, second))
            await first.wait()
            two = asyncio.create_task(inner("two", second, never))
            await asyncio.wait([one])
            never.set()
            await asyncio.wait([two])
            assert isinstance(one.exception(), TransactionError)

    with pytest.raises(TransactionError, match="overlap"):
        asyncio.run(outer())
    assert bodies() == []


def test_plain_with_works_in_async_code(database: Path) -> None:
    """Tasks that are started inside a plain `with` take part."""

    async def write() -> None:
        with db.transaction() as session:

            async def child() -> bool:
                add(session, "task")
                return db.current_transaction() is not None

            assert await asyncio.create_task(child())

    asyncio.run(write())
    assert bodies() == ["task"]


def test_async_with_works_too(database: Path) -> None:
    """`async with transaction()` is the same block."""

    async def write() -> None:
        async with db.transaction() as session:
            add(session, "async")

    asyncio.run(write())
    assert bodies() == ["async"]


def test_other_threads_take_no_part(database: Path) -> None:
    """A copied context does not make a transaction usable on another thread."""
    with db.transaction(), ThreadPoolExecutor(1) as thread:
        copied = contextvars.copy_context()
        assert scope.current_transaction() is not None
        assert thread.submit(copied.run, scope.current_transaction).result() is None


def test_ended_transaction_is_unusable(database: Path) -> None:
    """A context that was copied inside the block finds no transaction after its end."""
    with db.transaction():
        copied = contextvars.copy_context()
    assert copied.run(scope.current_transaction) is None
    assert scope.transaction_variable.get() is None


# after_commit()


def callbacks(*names: str) -> list[str]:
    """Registers one callback for each name; returns the list to which they add their names."""
    ran: list[str] = []
    current = db.current_transaction()
    assert current is not None
    for name in names:
        current.after_commit(lambda name=name: ran.append(name))  # type: ignore[misc]
    return ran


def test_callbacks_run_in_order_after_the_commit(database: Path) -> None:
    """Callbacks run once, after the row is visible and the transaction is no longer current."""
    seen: list[object] = []
    with db.transaction() as session:
        add(session, "one")
        current = db.current_transaction()
        assert current is not None
        current.after_commit(lambda: seen.append((bodies(), scope.transaction_variable.get())))
        ran = callbacks("first", "second")
        assert ran == []
    assert ran == ["first", "second"]
    assert seen == [(["one"], None)]


def test_callbacks_of_an_inner_block_wait_for_the_outermost_commit(database: Path) -> None:
    """The release of a savepoint is no commit."""
    with db.transaction():
        with db.transaction():
            ran = callbacks("inner")
        assert ran == []
    assert ran == ["inner"]


def test_rollback_drops_callbacks(database: Path) -> None:
    """Callbacks never run after a rollback."""
    with pytest.raises(ZeroDivisionError), db.transaction():
        ran = callbacks("never")
        raise ZeroDivisionError
    with db.transaction():
        pass
    assert ran == []


def test_rollback_of_an_inner_block_drops_its_callbacks_only(database: Path) -> None:
    """Callbacks of the outer block still run, before and after the failed one."""
    with db.transaction():
        before = callbacks("before")
        with pytest.raises(ZeroDivisionError), db.transaction():
            with db.transaction():
                innermost = callbacks("innermost")
            inner = callbacks("inner")
            raise ZeroDivisionError
        after = callbacks("after")
    assert (before, innermost, inner, after) == (["before"], [], [], ["after"])


def test_rollback_of_the_users_savepoint_drops_its_callbacks(database: Path) -> None:
    """`session.begin_nested()` counts like an inner block."""
    with db.transaction() as session:
        savepoint = session.begin_nested()
        inside = callbacks("inside")
        savepoint.rollback()
        with session.begin_nested():
            kept = callbacks("kept")
    assert (inside, kept) == ([], ["kept"])


def test_callback_that_raises_is_logged_and_the_next_runs(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A failed callback stops neither the next callback nor the commit."""
    with db.transaction() as session, caplog.at_level(logging.ERROR, "nitro.database"):
        add(session, "one")
        current = db.current_transaction()
        assert current is not None
        current.after_commit(lambda: 1 // 0)
        ran = callbacks("next")
    assert ran == ["next"]
    assert "ZeroDivisionError" in caplog.text
    assert bodies() == ["one"]


def test_callback_may_open_a_transaction(database: Path) -> None:
    """The callback's transaction is separate from the committed one."""

    def write() -> None:
        with db.transaction() as session:
            add(session, "later")

    with db.transaction():
        current = db.current_transaction()
        assert current is not None
        current.after_commit(write)
    assert bodies() == ["later"]


# Sessions of the user's own


def test_adopted_session_is_committed_by_the_block_that_began_it(database: Path) -> None:
    """A session that was in no transaction is committed at the end, and stays open."""
    with Session(db.engine()) as own:
        with db.transaction(own) as session:
            assert session is own
            add(own, "one")
            ran = callbacks("ran")
        assert bodies() == ["one"]
        assert ran == ["ran"]
        assert own.exec(select(DbNote.body)).all() == ["one"]


def test_adopted_session_is_rolled_back_by_the_block_that_began_it(database: Path) -> None:
    """An exception undoes what the block did."""
    with Session(db.engine()) as own:
        with pytest.raises(ZeroDivisionError), db.transaction(own):
            add(own, "one")
            ran = callbacks("never")
            raise ZeroDivisionError
        own.commit()
    assert bodies() == []
    assert ran == []


def test_session_in_a_transaction_is_committed_by_the_user(database: Path) -> None:
    """Callbacks wait for the user's own commit."""
    with Session(db.engine()) as own:
        add(own, "before")
        with db.transaction(own):
            add(own, "inside")
            ran = callbacks("ran")
        assert ran == []
        assert bodies() == []
        own.commit()
        assert ran == ["ran"]
    assert bodies() == ["before", "inside"]


def test_users_rollback_drops_callbacks(database: Path) -> None:
    """A rollback by the user drops the callbacks of the block."""
    with Session(db.engine()) as own:
        add(own, "before")
        with db.transaction(own):
            ran = callbacks("never")
        own.rollback()
        own.commit()
    assert ran == []


def test_failed_block_in_the_users_transaction_is_undone_alone(database: Path) -> None:
    """The user's earlier writes stay."""
    with Session(db.engine()) as own:
        add(own, "before")
        with pytest.raises(ZeroDivisionError), db.transaction(own):
            add(own, "inside")
            ran = callbacks("never")
            raise ZeroDivisionError
        own.commit()
    assert bodies() == ["before"]
    assert ran == []


def test_savepoint_on_a_plain_engine_is_part_of_the_users_transaction(tmp_path: Path) -> None:
    """Releasing the savepoint commits nothing, even if the driver has not begun a transaction yet."""
    plain = create_engine(f"sqlite:///{tmp_path / 'plain.db'}")
    SQLModel.metadata.create_all(plain)
    with Session(plain) as own:
        own.begin()
        with db.transaction(own):
            add(own, "inside")
        own.rollback()
    with Session(plain) as own:
        assert own.exec(select(DbNote)).all() == []
    plain.dispose()


def test_session_closed_without_a_commit_abandons_callbacks(database: Path) -> None:
    """`abandoned` is called once if the session closes without a commit, and never after a rollback."""
    told: list[str] = []
    with Session(db.engine()) as own:
        add(own, "one")
        db.commits_of(own).after_commit(lambda: told.append("committed"), abandoned=lambda: told.append("abandoned"))
    with Session(db.engine()) as own:
        add(own, "two")
        db.commits_of(own).after_commit(lambda: told.append("committed"), abandoned=lambda: told.append("abandoned"))
        own.rollback()
    assert told == ["abandoned"]


def test_callbacks_of_the_users_commit_run_outside_of_any_transaction(database: Path) -> None:
    """Callbacks see no transaction, even if the user commits inside a block of Nitro."""
    seen: list[object] = []
    bodies()
    with Session(db.engine()) as own:
        own.begin()
        db.commits_of(own).after_commit(lambda: seen.append(db.current_transaction()))
        with db.transaction():
            own.commit()
            assert db.current_transaction() is not None
    assert seen == [None]


def test_explicit_begin_makes_a_transaction_the_users_own(database: Path) -> None:
    """Pending, flushed and executed writes make it the user's transaction too; reads do not."""
    with Session(db.engine()) as own:
        own.exec(select(DbNote)).all()
        assert not db.has_work_to_commit(own)
        own.add(DbNote(body="pending"))
        assert db.has_work_to_commit(own)
        own.flush()
        assert db.has_work_to_commit(own)
        own.commit()
        assert not db.has_work_to_commit(own)
        own.begin()
        assert db.has_work_to_commit(own)
        own.rollback()
        own.execute(text("SELECT 1"))
        assert not db.has_work_to_commit(own)
        own.execute(DbNote.__table__.delete())  # type: ignore[attr-defined]
        assert db.has_work_to_commit(own)


def test_async_session_is_adopted(database: Path) -> None:
    """`async with transaction(session)` commits an AsyncSession; callbacks follow."""
    pytest.importorskip("aiosqlite")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    bodies()

    async def write() -> list[str]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{database}")
        async with AsyncSession(engine) as own, db.transaction(own):
            own.add(DbNote(body="async"))
            ran = callbacks("ran")
        await engine.dispose()
        return ran

    assert asyncio.run(write()) == ["ran"]
    assert bodies() == ["async"]


def test_async_session_in_a_plain_with_waits_for_the_users_commit(database: Path) -> None:
    """A plain `with` cannot await a commit, so the user's own decides."""
    pytest.importorskip("aiosqlite")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    bodies()

    async def write() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{database}")
        async with AsyncSession(engine) as own:
            with db.transaction(own):
                own.add(DbNote(body="async"))
                ran = callbacks("ran")
            assert ran == []
            await own.commit()
            assert ran == ["ran"]
            with pytest.raises(ZeroDivisionError), db.transaction(own):
                own.add(DbNote(body="half"))
                raise ZeroDivisionError
            with pytest.raises(TransactionError):
                await own.commit()
        await engine.dispose()

    asyncio.run(write())
    assert bodies() == ["async"]


def test_other_processes_write_ahead_too(database: Path) -> None:
    """WAL is a property of the file, so a plain connection finds it on."""
    bodies()
    plain = sqlite3.connect(database)
    assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    plain.close()


def test_engine_is_usable_from_many_threads_at_once(database: Path) -> None:
    """Threads have transactions of their own."""
    together = threading.Barrier(3)

    def look() -> int:
        with db.transaction():
            together.wait(30)
            return id(db.current_transaction())

    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(lambda _: look(), range(3)))) == 3
