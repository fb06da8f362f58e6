"""`bind(app, engine)` and `NITRO_DB_URL`: accepted databases, whatever their driver: contract section 2."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.event import listen, remove
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from nitro.errors import DatabaseRefused, SettingError
from nitro.infrastructure import database
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from nitro.settings import Settings
from support.app import has_shared_database

pytestmark = pytest.mark.usefixtures("offloading")

ON_SERVER = "postgresql+asyncpg://ada:p%40ss@db.example:5433/shop"


@pytest.fixture
def bound(celery_app: Callable[..., Celery]) -> Iterator[Callable[[Any], Engine]]:
    """A function that binds an app with a database and returns the engine that Nitro then uses."""

    def bind_to(target: Any) -> Engine:
        bind(celery_app("shop", broker="memory://"), target)
        return database.engine()

    yield bind_to
    database.reset()


def connects_with(engine: Engine) -> dict[str, Any]:
    """Returns the options that the driver of `engine` would get."""
    seen: list[dict[str, Any]] = []

    def see(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        seen.append(dict(options))
        raise ConnectionAbortedError

    listen(engine, "do_connect", see)
    try:
        with pytest.raises(ConnectionAbortedError):
            engine.connect()
    finally:
        remove(engine, "do_connect", see)
    return seen[0]


def kinds(path: Path) -> dict[str, Any]:
    """Returns the objects that name the same SQLite file, by their kind."""
    url = f"sqlite+aiosqlite:///{path}"
    asynchronous = create_async_engine(url)
    return {
        "engine": create_engine(f"sqlite:///{path}"),
        "async engine": asynchronous,
        "engine within": asynchronous.sync_engine,
        "text": f"sqlite:///{path}",
        "async text": url,
        "url": make_url(f"sqlite:///{path}"),
        "async url": make_url(url),
    }


@pytest.mark.parametrize("kind", ["engine", "async engine", "engine within", "text", "async text", "url", "async url"])
def test_what_names_a_database_is_taken(bound: Callable[[Any], Engine], evt: Event, tmp_path: Path, kind: str) -> None:
    """Rows of the outbox are written to the bound database, in whatever form it is given."""
    path = tmp_path / "own.db"
    engine = bound(kinds(path)[kind])
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    emit(evt)
    with create_engine(f"sqlite:///{path}").connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM nitro_delivery")) == 1
    assert engine.dialect.is_async is False


def test_a_bound_url_is_a_database_that_workers_share(
    celery_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bound URL needs no setting besides it, with a broker that is a server."""
    monkeypatch.delenv("NITRO_DB_URL")
    app = celery_app("shop", broker="redis://127.0.0.1:1/0")
    assert not has_shared_database(app)
    bind(app, f"sqlite:///{tmp_path / 'own.db'}")
    assert has_shared_database(app)


@pytest.mark.server
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "psycopg_async"])
@pytest.mark.parametrize("form", ["engine", "text"])
def test_an_asynchronous_driver_of_postgresql(
    bound: Callable[[Any], Engine], database_server: str, driver: str, form: str
) -> None:
    """Nitro's engine and the user's own async engine reach the same database."""
    url = make_url(database_server).set(drivername=f"postgresql+{driver}")
    own = create_async_engine(url)
    engine = bound(own if form == "engine" else url.render_as_string(hide_password=False))
    with engine.connect() as connection:
        name = connection.scalar(text("SELECT current_database()"))
    assert (name, engine.dialect.driver) == (asyncio.run(database_name(own)), "psycopg")


async def database_name(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        answer = await connection.scalar(text("SELECT current_database()"))
    await engine.dispose()
    return answer


def test_password_and_options_stay(bound: Callable[[Any], Engine]) -> None:
    """psycopg gets the options of the URL and of `connect_args` under its own names."""
    connect_args = {"timeout": 3, "server_settings": {"application_name": "my shop"}, "statement_cache_size": 0}
    engine = bound(create_async_engine(f"{ON_SERVER}?ssl=require", connect_args=connect_args))
    options = connects_with(engine)
    assert {name: value for name, value in options.items() if name != "context"} == {
        "host": "db.example",
        "port": 5433,
        "user": "ada",
        "password": "p@ss",
        "dbname": "shop",
        "sslmode": "require",
        "connect_timeout": 3,
        "options": "-c application_name=my\\ shop",
        "prepare_threshold": None,
    }


def test_a_password_that_is_asked_for_each_time_stays_so(bound: Callable[[Any], Engine]) -> None:
    """A listener that sets the password at each connect, such as a token that expires, serves both engines."""
    own, tokens = create_async_engine(ON_SERVER), iter(["at bind", "first", "second"])

    def set_token(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        options["password"] = next(tokens)

    listen(own.sync_engine, "do_connect", set_token)
    engine = bound(own)
    assert [connects_with(engine)["password"] for _ in range(2)] == ["first", "second"]


def test_options_of_sqlite_stay(bound: Callable[[Any], Engine], tmp_path: Path) -> None:
    """Options of aiosqlite are passed to sqlite3 unchanged."""
    own = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'own.db'}", connect_args={"cached_statements": 7})
    assert connects_with(bound(own))["cached_statements"] == 7


async def never() -> Any: ...


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "number": (lambda: 7, "a int: it names no database; give an Engine or AsyncEngine"),
    "class": (lambda: Engine, "a type: it names no database"),
    "text": (lambda: "no url", "it is no URL of a database"),
    "mysql": (lambda: "mysql+pymysql://h/db", "it is of mysql, and the outbox is kept in SQLite or PostgreSQL"),
    "mariadb": (lambda: URL.create("mariadb+pymysql", host="h"), "it is of mariadb"),
    "memory": (lambda: create_async_engine("sqlite+aiosqlite://"), "no other connection sees a database in memory"),
    "context": (lambda: create_async_engine(ON_SERVER, connect_args={"ssl": ssl.create_default_context()}), "ssl=<ssl"),
    "unknown": (lambda: create_async_engine(ON_SERVER, connect_args={"record_class": dict}), "record_class="),
    "function": (lambda: create_async_engine(ON_SERVER, async_creator=never), "connects by a function of its own"),
    "query": (lambda: f"{ON_SERVER}?direct_tls=true", "psycopg has nothing like its option direct_tls"),
}


@pytest.mark.filterwarnings("ignore:coroutine 'never' was never awaited")
@pytest.mark.parametrize(("target", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_by_bind(
    celery_app: Callable[..., Celery], target: Callable[[], Any], message: str
) -> None:
    """The error of `bind` has the reason and no password, and the database in use stays."""
    before = database.engine()
    with pytest.raises(DatabaseRefused) as refused:
        bind(celery_app("shop", broker="memory://"), target())
    assert message in str(refused.value)
    assert "p@ss" not in str(refused.value)
    assert "p%40ss" not in str(refused.value)
    assert database.engine() is before


@pytest.mark.parametrize(
    ("url", "synchronous"),
    [
        ("sqlite+aiosqlite:///shop.db", "sqlite:///shop.db"),
        ("postgresql+asyncpg://ada:p%40ss@h:5433/shop", "postgresql+psycopg://ada:p%40ss@h:5433/shop"),
        ("postgresql+asyncpg://h/db?ssl=require", "postgresql+psycopg://h/db?sslmode=require"),
        ("postgresql+asyncpg://h/db?prepared_statement_cache_size=0", "postgresql+psycopg://h/db"),
        ("postgres+asyncpg://h/db?timeout=3", "postgresql+psycopg://h/db?connect_timeout=3"),
        ("postgresql+psycopg_async://h/db?sslmode=require", "postgresql+psycopg://h/db?sslmode=require"),
        ("postgresql+psycopg2://h/db", "postgresql+psycopg2://h/db"),
        ("postgresql://h/db?sslmode=require", "postgresql+psycopg://h/db?sslmode=require"),
    ],
)
def test_the_setting_may_name_an_asynchronous_driver(url: str, synchronous: str) -> None:
    """`NITRO_DB_URL` accepts the URL of an asynchronous driver."""
    settings = Settings.load({"NITRO_DB_URL": url})
    assert settings.db_url == synchronous
    assert "asyncpg" not in settings.result_backend


@pytest.mark.parametrize("url", [f"{ON_SERVER}?direct_tls=true", "mysql+aiomysql://ada:p%40ss@h/db"])
def test_a_setting_that_cannot_be_used_is_refused(url: str) -> None:
    """The error of an unusable URL names the setting and shows no password."""
    with pytest.raises(SettingError, match="NITRO_DB_URL") as refused:
        Settings.load({"NITRO_DB_URL": url})
    assert "p%40ss" not in str(refused.value)
