"""The outbox's tables belong to Nitro: contract sections 8 and 14."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, select, text
from sqlmodel import Field, Session, SQLModel

import old_tables
from databases import KINDS
from nitro.errors import OutboxElsewhere, OutboxOutdated
from nitro.infrastructure.database import create_tables, engine, nitro_metadata, reset, transaction, write_connection
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.outbox import claims, operations, versions
from nitro.infrastructure.outbox.schema import schema_versions

NAMES = {"nitro_delivery", "nitro_emission", "nitro_schema", "nitro_worker"}
SOON = 10.0
"""Seconds in which what waits for no lock is done on the slowest machine; SQLite waits 30 for one."""


def offloaded(evt: Event) -> None:
    on(evt, offload=True, name="shop.a")(lambda sender, **kwargs: None)


def emptied(place: Engine) -> None:
    with place.begin() as connection:
        names = connection.scalars(text("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information)'")).all()
        for name in names:
            connection.exec_driver_sql(f'DROP SCHEMA "{name}" CASCADE')
        connection.exec_driver_sql("CREATE SCHEMA public")


@pytest.fixture
def server(database_server: str, monkeypatch: pytest.MonkeyPatch, app: Celery) -> Iterator[Engine]:
    """A PostgreSQL database without any table, which this process uses."""
    monkeypatch.setenv("NITRO_DB_URL", database_server)
    reset()
    place = create_engine(database_server)
    emptied(place)
    yield place
    reset()
    emptied(place)
    place.dispose()


@pytest.fixture(params=KINDS)
def empty(request: pytest.FixtureRequest, app: Celery, tmp_path: Path) -> Engine:
    """A database of each kind without any table, which this process uses, as a stranger connects to it."""
    if request.param == "sqlite":
        return create_engine(f"sqlite:///{tmp_path / 'nitro.db'}")
    server: Engine = request.getfixturevalue("server")
    return server


def shape(place: Engine) -> Any:
    """The columns and indexes of the outbox's tables."""
    seen = inspect(place)
    columns = {(name, column["name"]): str(column["type"]) for name in NAMES for column in seen.get_columns(name)}
    indexes = {
        (name, each["name"]): (
            each["column_names"],
            {key: str(value) for key, value in each["dialect_options"].items()},
        )
        for name in NAMES
        for each in seen.get_indexes(name)
    }
    return columns, indexes


def wanted(place: Engine) -> Any:
    """The shape of tables that are made today; they are dropped again."""
    create_tables(entities=False)
    found = shape(place)
    with place.begin() as connection:
        nitro_metadata.drop_all(connection)
    reset()
    return found


# A MetaData of their own


def test_they_are_not_among_the_users(app: Celery) -> None:
    """Neither in the process that has offloaded handlers nor in one that has none."""
    assert {name for name in SQLModel.metadata.tables if name.startswith("nitro_")} == set()
    assert set(nitro_metadata.tables) == NAMES


def test_dropping_the_users_tables_leaves_them(evt: Event, app: Celery) -> None:
    """As tests do between two of them."""
    offloaded(evt)
    first = emit(evt)
    SQLModel.metadata.drop_all(engine())
    second = emit(evt)
    assert {entry.emission for entry in operations.read_deliveries()} == {first.id, second.id}


SCRIPT = """
from nitro import emit, on, Entity
from sqlmodel import SQLModel
from celery import Celery
app = Celery("shop", broker="memory://")
@on("order.placed", offload=True, name="shop.a")
def a(sender): ...
class Order(Entity, table=True):
    __tablename__ = "orders_of_script"
{act}
emit("order.placed", "ada")
from nitro.infrastructure.outbox import operations
print([entry.state for entry in operations.read_deliveries()])
"""


@pytest.mark.parametrize(
    "act",
    [
        "SQLModel.metadata.clear()",
        "Order().save(); SQLModel.metadata.clear()",
        "emit('order.placed', 'bob'); SQLModel.metadata.clear()",
        "SQLModel.metadata.schema = 'app'",
        "SQLModel.metadata.naming_convention = {'ix': 'x_%(table_name)s', 'pk': 'pk_%(table_name)s'}",
        """SQLModel.metadata.schema = 'app'
class Later(Entity, table=True):
    note: str = ''
""",
    ],
)
def test_what_is_done_with_the_users_metadata_is_not_done_with_them(tmp_path: Path, act: str) -> None:
    """Before the first emit and after it."""
    environ = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "NITRO_DB_URL": f"sqlite:///{tmp_path}/n.db"}
    command = [sys.executable, "-c", SCRIPT.format(act=act)]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "queued" in done.stdout


def test_a_class_declared_after_a_clear_gets_its_table(app: Celery) -> None:
    """Also when there are as many classes again as there were."""
    metadata = MetaData()
    own_metadata, SQLModel.metadata = SQLModel.metadata, metadata
    try:

        class Before(SQLModel, table=True):
            id: int = Field(primary_key=True)

        with transaction() as session:
            session.add(Before(id=1))
        metadata.clear()

        class After(SQLModel, table=True):
            id: int = Field(primary_key=True)

        with transaction() as session:
            session.add(After(id=1))
    finally:
        SQLModel.metadata = own_metadata


@pytest.mark.server
@pytest.mark.parametrize("paths", [{None: "tenant"}, None])
def test_a_session_of_a_tenant_writes_into_them(
    evt: Event, app: Celery, server: Engine, paths: dict[str | None, str] | None
) -> None:
    """Neither its search path nor its map of schemas is about Nitro's tables."""
    offloaded(evt)
    create_tables()
    options = {"schema_translate_map": paths} if paths else {}
    with server.connect() as connection, Session(bind=connection.execution_options(**options)) as session:
        session.execute(text("CREATE SCHEMA tenant"))
        session.execute(text("SET search_path TO tenant"))
        with transaction(session):
            emission = emit(evt)
        session.commit()
    assert [entry.emission for entry in operations.read_deliveries()] == [emission.id]


# Versions


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("numbered", [True, False], ids=["by init", "by hand"])
def test_older_tables_become_those_of_this_version(empty: Engine, version: int, numbered: bool) -> None:
    """With what is in them; also those that Alembic or `create_all` has made, which say nothing of their version."""
    target = wanted(empty)
    with empty.begin() as connection:
        old_tables.create(connection, version, numbered=numbered)
    versions.init()
    assert shape(empty) == target
    assert [entry.handler for entry in operations.read_deliveries()] == ["shop.old"]
    with engine().connect() as connection:
        assert connection.execute(select(schema_versions)).all() == [(versions.VERSION, versions.USABLE_FROM)]
    versions.init()
    assert shape(empty) == target


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_tables_on_sqlite_bring_themselves_up_to_date(
    evt: Event, app: Celery, tmp_path: Path, version: int
) -> None:
    """With the first emit."""
    with create_engine(f"sqlite:///{tmp_path / 'nitro.db'}").begin() as connection:
        old_tables.create(connection, version)
    offloaded(evt)
    emit(evt)
    assert len(operations.read_deliveries()) == 2


INIT = """
import sys
from nitro.infrastructure.outbox import versions
print("ready", flush=True)
sys.stdin.readline()
versions.init(into=sys.argv[1] or None)
"""


@pytest.mark.parametrize("version", [0, 1, 3])
@pytest.mark.parametrize("isolation", ["", "?options=-cdefault_transaction_isolation%3Dserializable"])
def test_several_may_init_at_once(
    request: pytest.FixtureRequest, empty: Engine, tmp_path: Path, version: int, isolation: str
) -> None:
    """One does it, and the others find it done, also where transactions see but the past."""
    if isolation and empty.dialect.name == "sqlite":
        pytest.skip("SQLite has one isolation level")
    if version:
        with empty.begin() as connection:
            old_tables.create(connection, version)
    init_at_once(f"{empty.url.render_as_string(hide_password=False)}{isolation}", tmp_path)
    with empty.connect() as connection:
        assert connection.execute(text("SELECT version FROM nitro_schema")).all() == [(versions.VERSION,)]


def test_several_may_init_in_a_schema_at_once(server: Engine, tmp_path: Path) -> None:
    """One creates the schema, and the others find it there."""
    init_at_once(server.url.render_as_string(hide_password=False), tmp_path, into="at_once")
    with server.connect() as connection:
        assert connection.execute(text("SELECT version FROM at_once.nitro_schema")).all() == [(versions.VERSION,)]


def init_at_once(url: str, folder: Path, into: str = "") -> None:
    """Have three processes init, and see that none of them says anything."""
    environ = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "NITRO_DB_URL": url}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", INIT, into]
    started = [subprocess.Popen(command, cwd=folder, env=environ, **pipes) for _ in range(3)]
    for process in started:
        process.stdout.readline()
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in started] == [""] * 3


def numbered(version: int, usable_from: int) -> None:
    with write_connection() as connection:
        connection.execute(schema_versions.update().values(version=version, usable_from=usable_from))
    reset()


def test_later_tables_that_allow_it_are_used(evt: Event, empty: Engine) -> None:
    """A worker of this release goes on beside one of the next, whose tables have a column more."""
    offloaded(evt)
    versions.init()
    with write_connection() as connection:
        connection.exec_driver_sql("ALTER TABLE nitro_delivery ADD COLUMN later INTEGER NOT NULL DEFAULT 0")
    numbered(versions.VERSION + 3, versions.VERSION)
    emission = emit(evt)
    assert isinstance(claims.claim(emission.id, "shop.a", "boot/1-1"), claims.Claim)
    versions.init()
    with engine().connect() as connection:
        assert connection.scalar(select(schema_versions.c.version)) == versions.VERSION + 3


def test_later_tables_that_do_not_allow_it_are_refused(evt: Event, empty: Engine) -> None:
    """A library that is too old for the database says so, and what to do."""
    offloaded(evt)
    versions.init()
    numbered(versions.VERSION + 2, versions.VERSION + 1)
    for act in (
        lambda: emit(evt),
        operations.read_deliveries,
        versions.init,
        lambda: claims.claim("e", "shop.a", "b/1-1"),
    ):
        reset()
        with pytest.raises(OutboxOutdated, match="update the library"):
            act()


def test_tables_of_a_later_step_are_brought_up_to_date(
    evt: Event, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step, keeping what is in them; on SQLite by itself."""
    offloaded(evt)
    first = emit(evt)
    later = versions.VERSION + 2
    monkeypatch.setattr(versions, "VERSION", later)
    steps = {later - 1: ("ALTER TABLE nitro_worker ADD note TEXT",), later: ("UPDATE nitro_worker SET note = 'x'",)}
    monkeypatch.setattr(versions, "UPGRADE_STEPS", steps)
    reset()
    second = emit(evt)
    with engine().connect() as connection:
        assert connection.scalar(select(schema_versions.c.version)) == later
        connection.exec_driver_sql("SELECT note FROM nitro_worker")
    assert {entry.emission for entry in operations.read_deliveries()} == {first.id, second.id}


# Errors


@pytest.mark.server
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "are missing; run .*nitro init"),
        (lambda connection: old_tables.create(connection, 3), "are of version 3, and this library needs 4"),
        (lambda connection: old_tables.create(connection, 3, numbered=False), "have no version.*takes them over"),
    ],
    ids=["missing", "old", "no version"],
)
def test_a_server_database_that_cannot_be_used_says_why(
    evt: Event, server: Engine, made: Callable[[Connection], None] | None, said: str
) -> None:
    """Tables are made by `nitro init`, not behind the back of the database's owner."""
    if made is not None:
        with server.begin() as connection:
            made(connection)
    offloaded(evt)
    for act in (lambda: emit(evt), operations.read_deliveries, lambda: claims.claim("e", "shop.a", "b/1-1")):
        with pytest.raises(OutboxOutdated, match=said):
            act()


@pytest.mark.server
def test_a_table_that_is_missing_alone_is_named(evt: Event, server: Engine) -> None:
    """And `init` makes it anew."""
    versions.init()
    with server.begin() as connection:
        connection.execute(text("DROP TABLE nitro_worker"))
    reset()
    with pytest.raises(OutboxOutdated, match="nitro_worker is missing"):
        operations.read_deliveries()
    versions.init()
    assert operations.read_deliveries() == []


# A schema of their own


@pytest.mark.server
def test_tables_in_a_schema_are_found(evt: Event, server: Engine) -> None:
    """By emits, claims and commands, without another setting."""
    versions.init(into="Ours")
    reset()
    offloaded(evt)
    emission = emit(evt)
    assert isinstance(claims.claim(emission.id, "shop.a", "boot/1-1"), claims.Claim)
    assert [entry.state for entry in operations.read_deliveries()] == ["running"]
    assert set(inspect(server).get_table_names("Ours")) == NAMES
    assert inspect(server).get_table_names() == []


@pytest.mark.server
def test_a_claim_in_a_fresh_process_finds_them(evt: Event, server: Engine) -> None:
    """A worker's child process asks for nothing before."""
    versions.init(into="ours")
    offloaded(evt)
    emission = emit(evt)
    reset()
    assert isinstance(claims.claim(emission.id, "shop.a", "boot/1-1"), claims.Claim)


@pytest.mark.server
def test_older_tables_in_a_schema_are_brought_up_to_date(server: Engine) -> None:
    """Where they are, and whether or not the schema is named."""
    with server.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA ours; SET LOCAL search_path TO ours")
        old_tables.create(connection, 1)
    versions.init()
    assert [entry.handler for entry in operations.read_deliveries()] == ["shop.old"]
    assert inspect(server).get_table_names() == []


@pytest.mark.server
def test_a_second_schema_is_refused(server: Engine, database_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one is meant could not be told; with a search path it can."""
    versions.init(into="one")
    with pytest.raises(OutboxElsewhere, match="one and two"):
        versions.init(into="two")
    monkeypatch.setenv("NITRO_DB_URL", f"{database_server}?options=-csearch_path%3Dtwo")
    reset()
    versions.init(into="two")
    reset()
    assert operations.read_deliveries() == []
    with pytest.raises(OutboxElsewhere, match=r"in schema two; .*without --schema"):
        versions.init(into="three")


# SQLite: nobody waits for the lock of another process who only reads


def test_the_first_read_of_a_process_waits_for_no_writer(
    evt: Event, app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows of one's own and of the outbox, where all tables are there."""
    offloaded(evt)
    emit(evt)
    reset()
    other = sqlite3.connect(tmp_path / "nitro.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: len(operations.read_deliveries())).result(SOON) == 1
    with Session(engine()) as session:
        session.execute(text("SELECT 1"))
    assert time.monotonic() - begun < SOON
    other.execute("ROLLBACK")


def test_a_read_writes_nothing_where_all_is_there(evt: Event, app: Celery, tmp_path: Path) -> None:
    """It begins no transaction that would take a lock."""
    offloaded(evt)
    emit(evt)
    reset()
    begun: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        begun.extend([statement] if statement.startswith("BEGIN") else [])

    event.listen(engine(), "before_cursor_execute", note)
    operations.read_deliveries()
    assert set(begun) == {"BEGIN DEFERRED"}


def test_a_table_that_cannot_be_made_is_its_own_error(app: Celery) -> None:
    """And not that of a rollback which had nothing to roll back."""
    metadata, SQLModel.metadata = SQLModel.metadata, MetaData()
    try:

        class Odd(SQLModel, table=True):
            id: int = Field(primary_key=True)

        event.listen(SQLModel.metadata, "after_create", lambda _to, connection, **_: connection.execute(text("NO SQL")))
        with pytest.raises(Exception, match="syntax error"), transaction() as session:
            session.connection()
    finally:
        SQLModel.metadata = metadata


def test_init_on_sqlite_creates_only_nitros(app: Celery, tmp_path: Path) -> None:
    """The user's own come with `--entities`, or when they are first used."""
    metadata, SQLModel.metadata = SQLModel.metadata, MetaData()
    try:

        class Users(SQLModel, table=True):
            id: int = Field(primary_key=True)

        versions.init()
        assert set(inspect(create_engine(f"sqlite:///{tmp_path / 'nitro.db'}")).get_table_names()) == NAMES
        versions.init(entities=True)
        assert "users" in inspect(create_engine(f"sqlite:///{tmp_path / 'nitro.db'}")).get_table_names()
    finally:
        SQLModel.metadata = metadata


def test_the_script_makes_what_init_makes(empty: Engine) -> None:
    """`init --sql`, for those who may not let a program create tables."""
    target = wanted(empty)
    statements = versions.init_script()
    with empty.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    assert shape(empty) == target
    reset()
    assert operations.read_deliveries() == []


@pytest.mark.server
def test_the_script_brings_older_tables_up_to_date(server: Engine) -> None:
    """It is made for the tables that are there, and executes nothing."""
    target = wanted(server)
    with server.begin() as connection:
        old_tables.create(connection, 2)
    before = shape(server)
    statements = versions.init_script()
    assert shape(server) == before
    with server.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    assert shape(server) == target
    reset()
    assert versions.init_script() == []


def test_bind_to_another_database_forgets_the_schema(evt: Event, app: Celery, tmp_path: Path) -> None:
    """An engine of the user's own is looked into anew."""
    bind(app, create_engine(f"sqlite:///{tmp_path / 'other.db'}"))
    offloaded(evt)
    emit(evt)
    assert {table.schema for table in nitro_metadata.tables.values()} == {None}
