"""Drivers: a synchronous engine for a database that the user's program connects to with an asynchronous driver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.event import listen, remove
from sqlalchemy.exc import ArgumentError

from nitro.errors import DatabaseRefused, DriverOptionStays
from nitro.infrastructure.database import sqlite
from nitro.settings import IGNORED_ASYNCPG_OPTIONS, PSYCOPG_OPTION_NAMES, synchronous_url

SUPPORTED_DIALECTS = ("sqlite", "postgresql")

EngineFactory = Callable[[URL], Engine]


def synchronous_engine_for(database: object, create: EngineFactory) -> tuple[Engine, bool]:
    """Returns the synchronous engine for the database given to `bind`, and whether this call created it.

    Args:
        database: an engine, an asynchronous engine, or a URL.
        create: creates an engine for a URL.

    Raises:
        DatabaseRefused: the database cannot be used; the message says why.
    """
    engine = getattr(database, "sync_engine", database)  # an AsyncEngine has the attribute
    if isinstance(engine, Engine):
        _check_dialect(engine.url, _describe(database))
        return (_matching_engine(engine, create), True) if engine.dialect.is_async else (engine, False)
    if isinstance(database, str | URL):
        url = _parse_url(database)
        return _create_engine(url, create, repr(str(url))), True
    raise DatabaseRefused(f"a {type(database).__name__}", "it names no database")


def _describe(database: object) -> str:
    return f"the {type(database).__name__}"


def _parse_url(url: str | URL) -> URL:
    try:
        return _synchronous_url(make_url(url))
    except ArgumentError as error:
        raise DatabaseRefused("this text", "it is no URL of a database") from error


def _synchronous_url(url: URL) -> URL:
    _check_dialect(url, repr(str(url)))
    try:
        return make_url(synchronous_url(url.render_as_string(hide_password=False)))
    except DriverOptionStays as error:
        raise DatabaseRefused(repr(str(url)), str(error)) from error


def _check_dialect(url: URL, description: str) -> None:
    dialect = url.get_backend_name()
    if dialect not in SUPPORTED_DIALECTS:
        raise DatabaseRefused(description, f"it is of {dialect}, and the outbox is kept in SQLite or PostgreSQL")


def _create_engine(url: URL, create: EngineFactory, description: str) -> Engine:
    try:
        return create(url)
    except ImportError as error:
        raise DatabaseRefused(description, f"its synchronous driver is not installed ({error})") from error


def _matching_engine(asynchronous: Engine, create: EngineFactory) -> Engine:
    """Returns an engine for the same database.

    At each connect it takes the options with which the asynchronous engine would connect at that moment.
    """
    url, description = asynchronous.url, f"the AsyncEngine of {asynchronous.url}"
    if url.get_backend_name() == "sqlite" and sqlite.is_in_memory(url):
        raise DatabaseRefused(description, "no other connection sees a database in memory")
    try:
        _extra_connect_options(asynchronous)
    except DriverOptionStays as error:
        raise DatabaseRefused(description, str(error)) from error
    engine = _create_engine(_synchronous_url(url), create, description)

    def add_options(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        options.update(_extra_connect_options(asynchronous))

    listen(engine, "do_connect", add_options)
    return engine


class _CapturedOptions(Exception):
    """The options with which an engine is about to connect; raised in `do_connect`, so that it does not connect."""


def _extra_connect_options(engine: Engine) -> dict[str, Any]:
    """Returns the connect options of an asynchronous engine that are not in its URL, named for the synchronous driver.

    Raises:
        DriverOptionStays: the synchronous driver has no such option.
    """
    thread_id = get_ident()

    def capture_options(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        if get_ident() != thread_id:  # the user's program connects in another thread at the same time
            return
        raise _CapturedOptions(dict(options))

    listen(engine, "do_connect", capture_options)
    try:
        engine.pool.recreate().connect()
    except _CapturedOptions as captured:
        (options,) = captured.args
    except Exception as error:
        raise DriverOptionStays("it connects by a function of its own") from error
    else:
        raise DriverOptionStays("it connects by a function of its own")
    finally:
        remove(engine, "do_connect", capture_options)
    _, url_options = engine.dialect.create_connect_args(engine.url)
    extra_options = {
        name: value for name, value in options.items() if name not in url_options or url_options[name] != value
    }
    return (
        _psycopg_options(extra_options) if engine.dialect.driver == "asyncpg" else _without_async_options(extra_options)
    )


def _without_async_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a driver whose synchronous form takes the same names."""
    return {name: value for name, value in options.items() if name not in ("context", "async_creator_fn")}


def _psycopg_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of asyncpg under psycopg's names.

    Raises:
        DriverOptionStays: psycopg has no such option.
    """
    renamed: dict[str, Any] = {}
    for name, value in options.items():
        if name == "server_settings":
            renamed["options"] = " ".join(f"-c {key}={_escape_option(text)}" for key, text in value.items())
        elif name == "ssl" and value is True:
            renamed |= {"sslmode": "verify-full", "sslrootcert": "system"}
        elif name in PSYCOPG_OPTION_NAMES and (isinstance(value, str | int | float) or value is None):
            renamed |= {} if value is None else {PSYCOPG_OPTION_NAMES[name]: _psycopg_value(value)}
        elif name not in IGNORED_ASYNCPG_OPTIONS:
            raise DriverOptionStays(f"psycopg has nothing like its connect argument {name}={value!r:.60}")
    if 0 in (options.get("statement_cache_size"), options.get("prepared_statement_cache_size")):
        renamed["prepare_threshold"] = (
            None  # behind a connection pooler such as PgBouncer, which keeps no prepared statements
        )
    return renamed


def _psycopg_value(value: object) -> object:
    """Returns a float as whole seconds, which psycopg requires, and False as the TLS mode `disable`."""
    if value is False:
        return "disable"
    return max(1, round(value)) if isinstance(value, float) else value


def _escape_option(text: object) -> str:
    return str(text).replace("\\", "\\\\").replace(" ", "\\ ")


def cooperation_hint(engine: Engine) -> str | None:
    """Returns the remedy for a driver whose waits block all greenlets of the thread; None when it lets them run."""
    waiting_module = sys.modules.get("psycopg.waiting") if engine.driver == "psycopg" else None
    if waiting_module is None or waiting_module.wait is not getattr(waiting_module, "wait_c", None):
        return None
    return "start it with PSYCOPG_WAIT_FUNC=wait_selector"
