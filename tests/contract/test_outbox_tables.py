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
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlmodel import Field, Session, SQLModel

from nitro.errors import OutboxElsewhere, OutboxOutdated
from nitro.infrastructure.database import create_tables, engine, nitro_metadata, reset, transaction, write_connection
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from support import old_tables, outbox
from support.databases import KINDS
from support.tables import USABLE_FROM, VERSION, init, init_script, set_version, stored_versions, use_steps

NAMES = {"nitro_delivery", "nitro_emission", "nitro_schema", "nitro_worker"}
SOON = 10.0
"""Seconds within which work that waits for no lock ends on the slowest machine; SQLite waits 30 s for a lock."""


def offloaded(evt: Event) -> None:
    on(evt, offload=True, name="shop.a")(lambda sender, **kwargs: None)


def drop_schemas(place: Engine) -> None:
    """Drops all schemas of a PostgreSQL database and creates an empty `public`."""
    with place.begin() as connection:
        names = connection.scalars(text("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information)'")).all()
        for name in names:
            connection.exec_driver_sql(f'DROP SCHEMA "{name}" CASCADE')
        connection.exec_driver_sql("CREATE SCHEMA public")


@pytest.fixture
def server(database_server: str, monkeypatch: pytest.MonkeyPatch, app: Celery) -> Iterator[Engine]:
    """A PostgreSQL database without tables, used by this process."""
    monkeypatch.setenv("NITRO_DB_URL", database_server)
    reset()
    place = create_engine(database_server)
    drop_schemas(place)
    yield place
    reset()
    drop_schemas(place)
    place.dispose()


@pytest.fixture(params=KINDS)
def empty(request: pytest.FixtureRequest, app: Celery, tmp_path: Path) -> Engine:
    """A database of each kind without tables, used by this process; the engine is a second one."""
    if request.param == "sqlite":
        return create_engine(f"sqlite:///{tmp_path / 'nitro.db'}")
    server: Engine = request.getfixturevalue("server")
    return server


def shape(place: Engine) -> Any:
    """Returns the columns and indexes of the outbox's tables."""
    inspector = inspect(place)
    columns = {(name, column["name"]): str(column["type"]) for name in NAMES for column in inspector.get_columns(name)}
    indexes = {
        (name, each["name"]): (
            each["column_names"],
            {key: str(value) for key, value in each["dialect_options"].items()},
        )
        for name in NAMES
        for each in inspector.get_indexes(name)
    }
    return columns, indexes


def current_shape(place: Engine) -> Any:
    """Returns the shape of the tables that this version creates, and drops them again."""
    create_tables(entities=False)
    current = shape(place)
    with place.begin() as connection:
        nitro_metadata.drop_all(connection)
    reset()
    return current


def test_they_are_not_among_the_users(app: Celery) -> None:
    """Nitro's tables are not in `SQLModel.metadata`."""
    assert {name for name in SQLModel.metadata.tables if name.startswith("nitro_")} == set()
    assert set(nitro_metadata.tables) == NAMES


def test_dropping_the_users_tables_leaves_them(evt: Event, app: Celery) -> None:
    """Nitro's tables survive `SQLModel.metadata.drop_all()`, as tests call it between two tests."""
    offloaded(evt)
    first = emit(evt)
    SQLModel.metadata.drop_all(engine())
    second = emit(evt)
    assert {entry.emission for entry in outbox.deliveries()} == {first.id, second.id}


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
from support import outbox
print(outbox.states())
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
    """Changes of `SQLModel.metadata` before or after the first emit leave Nitro's tables as they are."""
    environ = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "NITRO_DB_URL": f"sqlite:///{tmp_path}/n.db"}
    command = [sys.executable, "-c", SCRIPT.format(act=act)]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "queued" in done.stdout


def test_a_class_declared_after_a_clear_gets_its_table(app: Celery) -> None:
    """A class that is declared after `metadata.clear()` gets its table, although the number of classes is the same."""
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
    """Neither the search path nor the schema map of a session applies to Nitro's tables."""
    offloaded(evt)
    create_tables()
    options = {"schema_translate_map": paths} if paths else {}
    with server.connect() as connection, Session(bind=connection.execution_options(**options)) as session:
        session.execute(text("CREATE SCHEMA tenant"))
        session.execute(text("SET search_path TO tenant"))
        with transaction(session):
            emission = emit(evt)
        session.commit()
    assert [entry.emission for entry in outbox.deliveries()] == [emission.id]


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("numbered", [True, False], ids=["by init", "by hand"])
def test_older_tables_become_those_of_this_version(empty: Engine, version: int, numbered: bool) -> None:
    """`init` upgrades older tables and keeps their rows, even if Alembic or `create_all` left no version."""
    target = current_shape(empty)
    with empty.begin() as connection:
        old_tables.create(connection, version, numbered=numbered)
    init()
    assert shape(empty) == target
    assert [entry.handler for entry in outbox.deliveries()] == ["shop.old"]
    assert stored_versions() == [(VERSION, USABLE_FROM)]
    init()
    assert shape(empty) == target


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_tables_on_sqlite_bring_themselves_up_to_date(
    evt: Event, app: Celery, tmp_path: Path, version: int
) -> None:
    """The first emit upgrades older tables on SQLite."""
    with create_engine(f"sqlite:///{tmp_path / 'nitro.db'}").begin() as connection:
        old_tables.create(connection, version)
    offloaded(evt)
    emit(evt)
    assert len(outbox.deliveries()) == 2


INIT = """
import sys
from support.tables import init
print("ready", flush=True)
sys.stdin.readline()
init(into=sys.argv[1] or None)
"""


@pytest.mark.parametrize("version", [0, 1, 3])
@pytest.mark.parametrize("isolation", ["", "?options=-cdefault_transaction_isolation%3Dserializable"])
def test_several_may_init_at_once(
    request: pytest.FixtureRequest, empty: Engine, tmp_path: Path, version: int, isolation: str
) -> None:
    """Concurrent calls of `init` all succeed, at any isolation level."""
    if isolation and empty.dialect.name == "sqlite":
        pytest.skip("SQLite has one isolation level")
    if version:
        with empty.begin() as connection:
            old_tables.create(connection, version)
    init_at_once(f"{empty.url.render_as_string(hide_password=False)}{isolation}", tmp_path)
    with empty.connect() as connection:
        assert connection.execute(text("SELECT version FROM nitro_schema")).all() == [(VERSION,)]


def test_several_may_init_in_a_schema_at_once(server: Engine, tmp_path: Path) -> None:
    """Concurrent calls of `init` with a new schema all succeed."""
    init_at_once(server.url.render_as_string(hide_password=False), tmp_path, into="at_once")
    with server.connect() as connection:
        assert connection.execute(text("SELECT version FROM at_once.nitro_schema")).all() == [(VERSION,)]


def init_at_once(url: str, folder: Path, into: str = "") -> None:
    """Runs `init` in three processes at once, and asserts that none writes to stderr."""
    environ = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "NITRO_DB_URL": url}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", INIT, into]
    processes = [subprocess.Popen(command, cwd=folder, env=environ, **pipes) for _ in range(3)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 3


def test_later_tables_that_allow_it_are_used(evt: Event, empty: Engine) -> None:
    """Tables of a later version are used if they allow this version, as during a rolling release."""
    offloaded(evt)
    init()
    with write_connection() as connection:
        connection.exec_driver_sql("ALTER TABLE nitro_delivery ADD COLUMN later INTEGER NOT NULL DEFAULT 0")
    set_version(VERSION + 3, VERSION)
    emission = emit(evt)
    outbox.start_run(emission.id, "shop.a")
    init()
    assert [version for version, _ in stored_versions()] == [VERSION + 3]


def test_later_tables_that_do_not_allow_it_are_refused(evt: Event, empty: Engine) -> None:
    """Tables of a later version that do not allow this version raise; the error says to update the library."""
    offloaded(evt)
    init()
    set_version(VERSION + 2, VERSION + 1)
    for act in (
        lambda: emit(evt),
        outbox.deliveries,
        init,
        lambda: outbox.start_run("e", "shop.a"),
    ):
        reset()
        with pytest.raises(OutboxOutdated, match="update the library"):
            act()


def test_tables_of_a_later_step_are_brought_up_to_date(
    evt: Event, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upgrade steps are applied in order and keep the rows; on SQLite without a command."""
    offloaded(evt)
    first = emit(evt)
    later = VERSION + 2
    steps = {later - 1: ("ALTER TABLE nitro_worker ADD note TEXT",), later: ("UPDATE nitro_worker SET note = 'x'",)}
    use_steps(monkeypatch, later, steps)
    second = emit(evt)
    assert [version for version, _ in stored_versions()] == [later]
    with engine().connect() as connection:
        connection.exec_driver_sql("SELECT note FROM nitro_worker")
    assert {entry.emission for entry in outbox.deliveries()} == {first.id, second.id}


@pytest.mark.server
@pytest.mark.parametrize(
    ("create", "message"),
    [
        (None, "are missing; run .*nitro init"),
        (lambda connection: old_tables.create(connection, 3), "are of version 3, and this library needs 4"),
        (lambda connection: old_tables.create(connection, 3, numbered=False), "have no version.*takes them over"),
    ],
    ids=["missing", "old", "no version"],
)
def test_a_server_database_that_cannot_be_used_says_why(
    evt: Event, server: Engine, create: Callable[[Connection], None] | None, message: str
) -> None:
    """Missing or older tables on a server raise an error that names `nitro init`."""
    if create is not None:
        with server.begin() as connection:
            create(connection)
    offloaded(evt)
    for act in (lambda: emit(evt), outbox.deliveries, lambda: outbox.start_run("e", "shop.a")):
        with pytest.raises(OutboxOutdated, match=message):
            act()


@pytest.mark.server
def test_a_table_that_is_missing_alone_is_named(evt: Event, server: Engine) -> None:
    """A single missing table is named in the error, and `init` creates it."""
    init()
    with server.begin() as connection:
        connection.execute(text("DROP TABLE nitro_worker"))
    reset()
    with pytest.raises(OutboxOutdated, match="nitro_worker is missing"):
        outbox.deliveries()
    init()
    assert outbox.deliveries() == []


@pytest.mark.server
def test_tables_in_a_schema_are_found(evt: Event, server: Engine) -> None:
    """Emits, claims and commands find tables in a schema without a setting."""
    init(into="Ours")
    reset()
    offloaded(evt)
    emission = emit(evt)
    outbox.start_run(emission.id, "shop.a")
    assert [entry.state for entry in outbox.deliveries()] == ["running"]
    assert set(inspect(server).get_table_names("Ours")) == NAMES
    assert inspect(server).get_table_names() == []


@pytest.mark.server
def test_a_claim_in_a_fresh_process_finds_them(evt: Event, server: Engine) -> None:
    """The first claim of a new process finds the schema, as in a worker's child process."""
    init(into="ours")
    offloaded(evt)
    emission = emit(evt)
    reset()
    outbox.start_run(emission.id, "shop.a")


@pytest.mark.server
def test_older_tables_in_a_schema_are_brought_up_to_date(server: Engine) -> None:
    """Older tables in a schema are upgraded there, although `init` does not name the schema."""
    with server.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA ours; SET LOCAL search_path TO ours")
        old_tables.create(connection, 1)
    init()
    assert [entry.handler for entry in outbox.deliveries()] == ["shop.old"]
    assert inspect(server).get_table_names() == []


@pytest.mark.server
def test_a_second_schema_is_refused(server: Engine, database_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second schema is refused as ambiguous, and accepted with a search path."""
    init(into="one")
    with pytest.raises(OutboxElsewhere, match="one and two"):
        init(into="two")
    monkeypatch.setenv("NITRO_DB_URL", f"{database_server}?options=-csearch_path%3Dtwo")
    reset()
    init(into="two")
    reset()
    assert outbox.deliveries() == []
    with pytest.raises(OutboxElsewhere, match=r"in schema two; .*without --schema"):
        init(into="three")


def test_the_first_read_of_a_process_waits_for_no_writer(
    evt: Event, app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first read of a process on SQLite waits for no writer if all tables exist."""
    offloaded(evt)
    emit(evt)
    reset()
    other = sqlite3.connect(tmp_path / "nitro.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: len(outbox.deliveries())).result(SOON) == 1
    with Session(engine()) as session:
        session.execute(text("SELECT 1"))
    assert time.monotonic() - start < SOON
    other.execute("ROLLBACK")


def test_a_read_writes_nothing_where_all_is_there(evt: Event, app: Celery, tmp_path: Path) -> None:
    """A read on SQLite takes no write lock if all tables exist."""
    offloaded(evt)
    emit(evt)
    reset()
    begins: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        begins.extend([statement] if statement.startswith("BEGIN") else [])

    event.listen(engine(), "before_cursor_execute", record)
    outbox.deliveries()
    assert set(begins) == {"BEGIN DEFERRED"}


def test_a_table_that_cannot_be_made_is_its_own_error(app: Celery) -> None:
    """A failing creation of tables raises its own error, not the error of the following rollback."""
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
    """`init` on SQLite creates Nitro's tables; the user's tables need `--entities` or their first use."""
    metadata, SQLModel.metadata = SQLModel.metadata, MetaData()
    try:

        class Users(SQLModel, table=True):
            id: int = Field(primary_key=True)

        init()
        assert set(inspect(create_engine(f"sqlite:///{tmp_path / 'nitro.db'}")).get_table_names()) == NAMES
        init(entities=True)
        assert "users" in inspect(create_engine(f"sqlite:///{tmp_path / 'nitro.db'}")).get_table_names()
    finally:
        SQLModel.metadata = metadata


def test_the_script_makes_what_init_makes(empty: Engine) -> None:
    """The script of `init --sql` creates the same tables as `init`."""
    target = current_shape(empty)
    statements = init_script()
    with empty.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    assert shape(empty) == target
    reset()
    assert outbox.deliveries() == []


@pytest.mark.server
def test_the_script_brings_older_tables_up_to_date(server: Engine) -> None:
    """The script upgrades the existing tables; writing it executes nothing."""
    target = current_shape(server)
    with server.begin() as connection:
        old_tables.create(connection, 2)
    before = shape(server)
    statements = init_script()
    assert shape(server) == before
    with server.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    assert shape(server) == target
    reset()
    assert init_script() == []


def test_bind_to_another_database_forgets_the_schema(evt: Event, app: Celery, tmp_path: Path) -> None:
    """`bind` to another database looks for its schema again."""
    bind(app, create_engine(f"sqlite:///{tmp_path / 'other.db'}"))
    offloaded(evt)
    emit(evt)
    assert {table.schema for table in nitro_metadata.tables.values()} == {None}
