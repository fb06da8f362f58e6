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

VARIABLE_NAMES = (
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
BROKER_SCHEMES = ("filesystem", "memory", "redis", "rediss", "amqp", "amqps", "pyamqp", "sentinel", "sqs")
DATABASE_SCHEMES = ("sqlite", "postgresql", "postgres")
SYNCHRONOUS_DRIVERS = {"aiosqlite": "", "asyncpg": "+psycopg", "psycopg_async": "+psycopg"}
"""The driver for each asynchronous one."""
PSYCOPG_OPTION_NAMES = {
    "ssl": "sslmode",
    "timeout": "connect_timeout",
    **{same: same for same in ("host", "port", "user", "password", "passfile", "target_session_attrs", "krbsrvname")},
    **{same: same for same in ("service", "gsslib")},
    "database": "dbname",
}
"""Options of asyncpg, as psycopg calls them."""
IGNORED_ASYNCPG_OPTIONS = (
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
JOURNAL_VALUES = {"off": False, "on": True}
EMBEDDED_BROKER_URL = "filesystem://localhost//"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the `NITRO_*` variables say, with defaults that need no server.

    Attributes:
        db_url: SQLAlchemy URL of the database that emitters and workers share; an asynchronous driver is replaced.
        is_db_set: whether it was set, so that workers elsewhere share it.
        broker_url: kombu URL, for an app that names no broker; the default is a folder under `NITRO_HOME`.
        result_backend: Celery result backend, for an app that names none; with a server database, that one.
        handlers: comma-separated modules that a worker imports for their handlers.
        journal: `on` records emissions that queue nothing too, for `nitro trace` and `nitro tail`.
        home: folder of the embedded broker and its results.
        delivery: delivery of an offloaded handler that names none.
        signing_key: secret; when set, messages are signed and unsigned ones are refused.
    """

    db_url: str
    is_db_set: bool
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
        given = (environ.get(name) or "" for name in VARIABLE_NAMES)
        return _parse(os.getcwd(), *given)  # noqa: PTH109  # a Path costs an emit more than all else here


@lru_cache(maxsize=8)
def _parse(
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
    """The settings of these values, in the order of `VARIABLE_NAMES`; kept, because each emit asks."""
    at_home = Path(folder, home or ".nitro")
    database = _database_url(db_url or "sqlite:///nitro.db")
    results = database if not database.startswith("sqlite") else f"sqlite:///{at_home / 'results.db'}"
    return Settings(
        db_url=database,
        is_db_set=bool(db_url),
        broker_url=_broker_url(broker_url or EMBEDDED_BROKER_URL),
        result_backend=result_backend or f"db+{results}",
        handlers=_module_names(handlers),
        journal=_check_choice("NITRO_JOURNAL", journal or "off", JOURNAL_VALUES),
        home=at_home,
        delivery=_check_choice("NITRO_DELIVERY", delivery or "at-least-once", {d: d for d in DELIVERIES}),
        signing_key=signing_key or None,
    )


def signing_key() -> str | None:
    """`Settings.load().signing_key`, for whoever asks at each message."""
    return os.environ.get("NITRO_SIGNING_KEY") or None


def is_db_set() -> bool:
    """`Settings.load().is_db_set`, for whoever asks at each emit."""
    return bool(os.environ.get("NITRO_DB_URL"))


def _check_choice(name: str, value: str, allowed: Mapping[str, T]) -> T:
    if value not in allowed:
        raise SettingError(name, value, "one of " + ", ".join(allowed))
    return allowed[value]


def _check_scheme(name: str, url: str, allowed: tuple[str, ...]) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.partition("+")[0] not in allowed:
        raise SettingError(name, _mask_password(url), "a URL that starts with " + ", ".join(f"{s}://" for s in allowed))
    return scheme


def _mask_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)


def _database_url(url: str) -> str:
    """The URL with a synchronous driver."""
    _check_scheme("NITRO_DB_URL", url, DATABASE_SCHEMES)
    try:
        return synchronous_url(url)
    except DriverOptionStays as error:
        raise SettingError("NITRO_DB_URL", _mask_password(url), f"one without it: {error}") from error


def synchronous_url(url: str) -> str:
    """The URL with the synchronous driver for an asynchronous one; with psycopg, where PostgreSQL names none.

    Raises:
        DriverOptionStays: it has an option that the synchronous driver cannot be told.
    """
    scheme, _, rest = url.partition("://")
    backend, _, driver = scheme.partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    if backend == "postgresql" and not driver:
        return f"postgresql+psycopg://{rest}"
    if driver not in SYNCHRONOUS_DRIVERS:
        return url
    place, mark, query = rest.partition("?")
    if driver == "asyncpg" and mark:
        query = urlencode(
            [(_psycopg_option_name(name), value) for name, value in parse_qsl(query) if _is_translatable(name)]
        )
        mark = "?" if query else ""
    return f"{backend}{SYNCHRONOUS_DRIVERS[driver]}://{place}{mark}{query}"


def _is_translatable(name: str) -> bool:
    return name not in IGNORED_ASYNCPG_OPTIONS


def _psycopg_option_name(name: str) -> str:
    if name not in PSYCOPG_OPTION_NAMES:
        raise DriverOptionStays(f"psycopg has nothing like its option {name}")
    return PSYCOPG_OPTION_NAMES[name]


def _broker_url(url: str) -> str:
    _check_scheme("NITRO_BROKER_URL", url, BROKER_SCHEMES)
    return url


def _module_names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise SettingError("NITRO_HANDLERS", name, "comma-separated module names, such as shop.handlers")
    return names
