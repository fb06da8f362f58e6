"""Drivers: the synchronous engine for a database that the user's program reaches through an asynchronous driver."""

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


def synchronous_engine_for(given: object, connect: EngineFactory) -> tuple[Engine, bool]:
    """The synchronous engine for what `bind` was given, and whether it was made here.

    Args:
        connect: makes an engine for a URL.

    Raises:
        DatabaseRefused: there is none; says why.
    """
    engine = getattr(given, "sync_engine", given)  # of an AsyncEngine
    if isinstance(engine, Engine):
        _check_dialect(engine.url, _describe(given))
        return (_matching_engine(engine, connect), True) if engine.dialect.is_async else (engine, False)
    if isinstance(given, str | URL):
        url = _parse_url(given)
        return _create_engine(url, connect, repr(str(url))), True
    raise DatabaseRefused(f"a {type(given).__name__}", "it names no database")


def _describe(given: object) -> str:
    return f"the {type(given).__name__}"


def _parse_url(given: str | URL) -> URL:
    try:
        return _synchronous_url(make_url(given))
    except ArgumentError as error:
        raise DatabaseRefused("this text", "it is no URL of a database") from error


def _synchronous_url(url: URL) -> URL:
    _check_dialect(url, repr(str(url)))
    try:
        return make_url(synchronous_url(url.render_as_string(hide_password=False)))
    except DriverOptionStays as error:
        raise DatabaseRefused(repr(str(url)), str(error)) from error


def _check_dialect(url: URL, named: str) -> None:
    kind = url.get_backend_name()
    if kind not in SUPPORTED_DIALECTS:
        raise DatabaseRefused(named, f"it is of {kind}, and the outbox is kept in SQLite or PostgreSQL")


def _create_engine(url: URL, connect: EngineFactory, named: str) -> Engine:
    try:
        return connect(url)
    except ImportError as error:
        raise DatabaseRefused(named, f"its synchronous driver is not installed ({error})") from error


def _matching_engine(asynchronous: Engine, connect: EngineFactory) -> Engine:
    """An engine for the same database, which connects with what the asynchronous one would connect with then."""
    url, named = asynchronous.url, f"the AsyncEngine of {asynchronous.url}"
    if url.get_backend_name() == "sqlite" and sqlite.is_in_memory(url):
        raise DatabaseRefused(named, "no other connection sees a database in memory")
    try:
        _extra_connect_options(asynchronous)
    except DriverOptionStays as error:
        raise DatabaseRefused(named, str(error)) from error
    made = _create_engine(_synchronous_url(url), connect, named)

    def add_options(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        options.update(_extra_connect_options(asynchronous))

    listen(made, "do_connect", add_options)
    return made


class _CapturedOptions(Exception):  # it is no error
    """The options with which an engine is about to connect."""


def _extra_connect_options(engine: Engine) -> dict[str, Any]:
    """What an asynchronous engine connects with besides its URL, as the synchronous driver calls it.

    Raises:
        DriverOptionStays: some of it cannot be said to that driver.
    """
    me = get_ident()

    def stop(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        if get_ident() != me:  # of the user's own
            return
        raise _CapturedOptions(dict(options))

    listen(engine, "do_connect", stop)
    try:
        engine.pool.recreate().connect()
    except _CapturedOptions as seen:
        (options,) = seen.args
    except Exception as error:
        raise DriverOptionStays("it connects by a function of its own") from error
    else:
        raise DriverOptionStays("it connects by a function of its own")
    finally:
        remove(engine, "do_connect", stop)
    _, of_url = engine.dialect.create_connect_args(engine.url)
    further = {name: value for name, value in options.items() if name not in of_url or of_url[name] != value}
    return _psycopg_options(further) if engine.dialect.driver == "asyncpg" else _without_async_options(further)


def _without_async_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a driver that takes the same ones either way."""
    return {name: value for name, value in options.items() if name not in ("context", "async_creator_fn")}


def _psycopg_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of asyncpg, as psycopg calls them."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name == "server_settings":
            found["options"] = " ".join(f"-c {key}={_escape_option(text)}" for key, text in value.items())
        elif name == "ssl" and value is True:
            found |= {"sslmode": "verify-full", "sslrootcert": "system"}
        elif name in PSYCOPG_OPTION_NAMES and (isinstance(value, str | int | float) or value is None):
            found |= {} if value is None else {PSYCOPG_OPTION_NAMES[name]: _psycopg_value(value)}
        elif name not in IGNORED_ASYNCPG_OPTIONS:
            raise DriverOptionStays(f"psycopg has nothing like its connect argument {name}={value!r:.60}")
    if 0 in (options.get("statement_cache_size"), options.get("prepared_statement_cache_size")):
        found["prepare_threshold"] = None  # of one behind a pool of connections, which knows no prepared statements
    return found


def _psycopg_value(value: object) -> object:
    """A time in whole seconds, as psycopg takes it; False as the mode of TLS that it means."""
    if value is False:
        return "disable"
    return max(1, round(value)) if isinstance(value, float) else value


def _escape_option(text: object) -> str:
    return str(text).replace("\\", "\\\\").replace(" ", "\\ ")


def cooperation_hint(engine: Engine) -> str | None:
    """How the driver of this engine, which is one that would stop all greenlets, is had to let them go on."""
    waiting = sys.modules.get("psycopg.waiting") if engine.driver == "psycopg" else None
    if waiting is None or waiting.wait is not getattr(waiting, "wait_c", None):
        return None
    return "start it with PSYCOPG_WAIT_FUNC=wait_selector"
