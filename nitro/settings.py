"""Settings from the environment: frozen, validated, no other source."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode

from nitro.errors import DriverOptionStays, SettingError

T = TypeVar("T")

NAMES = (
    "NITRO_DB_URL",
    "NITRO_BROKER_URL",
    "NITRO_RESULT_BACKEND",
    "NITRO_HANDLERS",
    "NITRO_JOURNAL",
    "NITRO_HOME",
    "NITRO_DELIVERY",
    "NITRO_SIGNING_KEY",
)
DELIVERIES = ("at-most-once", "broker", "at-least-once", "exactly-once")
BROKERS = ("filesystem", "memory", "redis", "rediss", "amqp", "amqps", "pyamqp", "sentinel", "sqs")
DATABASES = ("sqlite", "postgresql", "postgres")
SYNCHRONOUS = {"aiosqlite": "", "asyncpg": "+psycopg", "psycopg_async": "+psycopg"}
"""The driver for each asynchronous one."""
ASYNCPG = {
    "ssl": "sslmode",
    "timeout": "connect_timeout",
    **{same: same for same in ("host", "port", "user", "password", "passfile", "target_session_attrs", "krbsrvname")},
    **{same: same for same in ("service", "gsslib")},
    "database": "dbname",
}
"""Options of asyncpg, as psycopg calls them."""
UNKNOWN_TO_PSYCOPG = (
    "statement_cache_size",
    "prepared_statement_cache_size",
    "prepared_statement_name_func",
    "max_cached_statement_lifetime",
    "max_cacheable_statement_size",
    "command_timeout",
    "async_fallback",
    "loop",
)
"""Options of asyncpg about what psycopg does not do."""
JOURNAL = {"off": False, "on": True}
EMBEDDED_BROKER = "filesystem://localhost//"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the `NITRO_*` variables say, with defaults that need no server.

    Attributes:
        db_url: SQLAlchemy URL of the database that emitters and workers share; an asynchronous driver is replaced.
        db_given: whether it was set, so that workers elsewhere share it.
        broker_url: kombu URL, for an app that names no broker; the default is a folder under `NITRO_HOME`.
        result_backend: Celery result backend, for an app that names none; with a server database, that one.
        handlers: comma-separated modules that a worker imports for their handlers.
        journal: `on` records emissions that queue nothing too, for `nitro trace` and `nitro tail`.
        home: folder of the embedded broker and its results.
        delivery: delivery of an offloaded handler that names none.
        signing_key: secret; when set, messages are signed and unsigned ones are refused.
    """

    db_url: str
    db_given: bool
    broker_url: str
    result_backend: str
    handlers: tuple[str, ...]
    journal: bool
    home: Path
    delivery: str
    signing_key: str | None

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read and check the settings.

        Raises:
            SettingError: a value is not allowed; names setting, value and what is.
        """
        given = (environ.get(name) or "" for name in NAMES)
        return _parsed(os.getcwd(), *given)  # noqa: PTH109  # a Path costs an emit more than all else here


@lru_cache(maxsize=8)
def _parsed(
    folder: str,
    db_url: str,
    broker_url: str,
    result_backend: str,
    handlers: str,
    journal: str,
    home: str,
    delivery: str,
    signing_key: str,
) -> Settings:
    """The settings of these values, in the order of `NAMES`; kept, because each emit asks."""
    at_home = Path(folder, home or ".nitro")
    database = _database(db_url or "sqlite:///nitro.db")
    results = database if not database.startswith("sqlite") else f"sqlite:///{at_home / 'results.db'}"
    return Settings(
        db_url=database,
        db_given=bool(db_url),
        broker_url=_broker(broker_url or EMBEDDED_BROKER),
        result_backend=result_backend or f"db+{results}",
        handlers=_modules(handlers),
        journal=_choice("NITRO_JOURNAL", journal or "off", JOURNAL),
        home=at_home,
        delivery=_choice("NITRO_DELIVERY", delivery or "at-least-once", {d: d for d in DELIVERIES}),
        signing_key=signing_key or None,
    )


def signing_key() -> str | None:
    """`Settings.load().signing_key`, for whoever asks at each message."""
    return os.environ.get("NITRO_SIGNING_KEY") or None


def db_given() -> bool:
    """`Settings.load().db_given`, for whoever asks at each emit."""
    return bool(os.environ.get("NITRO_DB_URL"))


def _choice(name: str, value: str, allowed: Mapping[str, T]) -> T:
    if value not in allowed:
        raise SettingError(name, value, "one of " + ", ".join(allowed))
    return allowed[value]


def _scheme(name: str, url: str, allowed: tuple[str, ...]) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.partition("+")[0] not in allowed:
        raise SettingError(name, _masked(url), "a URL that starts with " + ", ".join(f"{s}://" for s in allowed))
    return scheme


def _masked(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)


def _database(url: str) -> str:
    """The URL with a synchronous driver."""
    _scheme("NITRO_DB_URL", url, DATABASES)
    try:
        return synchronous(url)
    except DriverOptionStays as error:
        raise SettingError("NITRO_DB_URL", _masked(url), f"one without it: {error}") from error


def synchronous(url: str) -> str:
    """The URL with the synchronous driver for an asynchronous one; with psycopg, where PostgreSQL names none.

    Raises:
        DriverOptionStays: it has an option that the synchronous driver cannot be told.
    """
    scheme, _, rest = url.partition("://")
    backend, _, driver = scheme.partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    if backend == "postgresql" and not driver:
        return f"postgresql+psycopg://{rest}"
    if driver not in SYNCHRONOUS:
        return url
    place, mark, query = rest.partition("?")
    if driver == "asyncpg" and mark:
        query = urlencode([(_of_psycopg(name), value) for name, value in parse_qsl(query) if _is_said(name)])
        mark = "?" if query else ""
    return f"{backend}{SYNCHRONOUS[driver]}://{place}{mark}{query}"


def _is_said(name: str) -> bool:
    return name not in UNKNOWN_TO_PSYCOPG


def _of_psycopg(name: str) -> str:
    if name not in ASYNCPG:
        raise DriverOptionStays(f"psycopg has nothing like its option {name}")
    return ASYNCPG[name]


def _broker(url: str) -> str:
    _scheme("NITRO_BROKER_URL", url, BROKERS)
    return url


def _modules(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise SettingError("NITRO_HANDLERS", name, "comma-separated module names, such as shop.handlers")
    return names
