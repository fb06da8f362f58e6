"""Drivers: the synchronous engine for a database that the user's program reaches through an asynchronous driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.event import listen, remove
from sqlalchemy.exc import ArgumentError

from nitro.errors import DatabaseRefused, DriverOptionStays
from nitro.infrastructure.database import sqlite
from nitro.settings import ASYNCPG, UNKNOWN_TO_PSYCOPG, synchronous

DIALECTS = ("sqlite", "postgresql")

Connect = Callable[[URL], Engine]


def engine_for(given: object, connect: Connect) -> tuple[Engine, bool]:
    """The synchronous engine for what `bind` was given, and whether it was made here.

    Args:
        connect: makes an engine for a URL.

    Raises:
        DatabaseRefused: there is none; says why.
    """
    engine = getattr(given, "sync_engine", given)  # of an AsyncEngine
    if isinstance(engine, Engine):
        _check(engine.url, _named(given))
        return (_beside(engine, connect), True) if engine.dialect.is_async else (engine, False)
    if isinstance(given, str | URL):
        url = _parsed(given)
        return _connected(url, connect, repr(str(url))), True
    raise DatabaseRefused(f"a {type(given).__name__}", "it names no database")


def _named(given: object) -> str:
    return f"the {type(given).__name__}"


def _parsed(given: str | URL) -> URL:
    try:
        return _synchronous(make_url(given))
    except ArgumentError as error:
        raise DatabaseRefused("this text", "it is no URL of a database") from error


def _synchronous(url: URL) -> URL:
    _check(url, repr(str(url)))
    try:
        return make_url(synchronous(url.render_as_string(hide_password=False)))
    except DriverOptionStays as error:
        raise DatabaseRefused(repr(str(url)), str(error)) from error


def _check(url: URL, named: str) -> None:
    kind = url.get_backend_name()
    if kind not in DIALECTS:
        raise DatabaseRefused(named, f"it is of {kind}, and the outbox is kept in SQLite or PostgreSQL")


def _connected(url: URL, connect: Connect, named: str) -> Engine:
    try:
        return connect(url)
    except ImportError as error:
        raise DatabaseRefused(named, f"its synchronous driver is not installed ({error})") from error


def _beside(asynchronous: Engine, connect: Connect) -> Engine:
    """An engine for the same database, which connects with what the asynchronous one would connect with then."""
    url, named = asynchronous.url, f"the AsyncEngine of {asynchronous.url}"
    if url.get_backend_name() == "sqlite" and sqlite.in_memory(url):
        raise DatabaseRefused(named, "no other connection sees a database in memory")
    try:
        _further_options(asynchronous)
    except DriverOptionStays as error:
        raise DatabaseRefused(named, str(error)) from error
    made = _connected(_synchronous(url), connect, named)

    def add_options(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        options.update(_further_options(asynchronous))

    listen(made, "do_connect", add_options)
    return made


class _Seen(Exception):  # it is no error
    """The options with which an engine is about to connect."""


def _further_options(engine: Engine) -> dict[str, Any]:
    """What an asynchronous engine connects with besides its URL, as the synchronous driver calls it.

    Raises:
        DriverOptionStays: some of it cannot be said to that driver.
    """
    me = get_ident()

    def stop(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        if get_ident() != me:  # of the user's own
            return
        raise _Seen(dict(options))

    listen(engine, "do_connect", stop)
    try:
        engine.pool.recreate().connect()
    except _Seen as seen:
        (options,) = seen.args
    except Exception as error:
        raise DriverOptionStays("it connects by a function of its own") from error
    else:
        raise DriverOptionStays("it connects by a function of its own")
    finally:
        remove(engine, "do_connect", stop)
    _, of_url = engine.dialect.create_connect_args(engine.url)
    further = {name: value for name, value in options.items() if name not in of_url or of_url[name] != value}
    return _of_psycopg(further) if engine.dialect.driver == "asyncpg" else _without_own(further)


def _without_own(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a driver that takes the same ones either way."""
    return {name: value for name, value in options.items() if name not in ("context", "async_creator_fn")}


def _of_psycopg(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of asyncpg, as psycopg calls them."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name == "server_settings":
            found["options"] = " ".join(f"-c {key}={_escaped(text)}" for key, text in value.items())
        elif name == "ssl" and value is True:
            found |= {"sslmode": "verify-full", "sslrootcert": "system"}
        elif name in ASYNCPG and (isinstance(value, str | int | float) or value is None):
            found |= {} if value is None else {ASYNCPG[name]: _number(value)}
        elif name not in UNKNOWN_TO_PSYCOPG:
            raise DriverOptionStays(f"psycopg has nothing like its connect argument {name}={value!r:.60}")
    if 0 in (options.get("statement_cache_size"), options.get("prepared_statement_cache_size")):
        found["prepare_threshold"] = None  # of one behind a pool of connections, which knows no prepared statements
    return found


def _number(value: object) -> object:
    """A time in whole seconds, as psycopg takes it; False as the mode of TLS that it means."""
    if value is False:
        return "disable"
    return max(1, round(value)) if isinstance(value, float) else value


def _escaped(text: object) -> str:
    return str(text).replace("\\", "\\\\").replace(" ", "\\ ")
