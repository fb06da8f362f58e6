"""The settings: read from the environment only, validated, frozen."""

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
"""Asynchronous driver → suffix of the URL with the synchronous driver that replaces it."""
PSYCOPG_OPTION_NAMES = {
    "ssl": "sslmode",
    "timeout": "connect_timeout",
    **{name: name for name in ("host", "port", "user", "password", "passfile", "target_session_attrs", "krbsrvname")},
    **{name: name for name in ("service", "gsslib")},
    "database": "dbname",
}
"""Option of asyncpg → psycopg's name for it."""
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
"""Options of asyncpg that are dropped, because psycopg lacks the feature that they configure."""
JOURNAL_VALUES = {"off": False, "on": True}
EMBEDDED_BROKER_URL = "filesystem://localhost//"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values of the `NITRO_*` variables, with defaults that need no server.

    Attributes:
        db_url: SQLAlchemy URL of the database that emitters and workers share; an asynchronous driver is replaced.
        is_db_set: whether NITRO_DB_URL is set, so that workers on other machines can share the database.
        broker_url: kombu URL, for an app that names no broker; the default is a folder under `NITRO_HOME`.
        result_backend: Celery result backend, for an app that names none; by default the server of NITRO_DB_URL, else a
            file in NITRO_HOME.
        handlers: comma-separated modules that a worker imports for their handlers.
        journal: `on` also records emissions without a tracked delivery, for `nitro trace` and `nitro tail`.
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
        """Reads and checks the settings.

        Raises:
            SettingError: a value is not allowed; the message names the variable, the value and the allowed values.
        """
        values = (environ.get(name) or "" for name in VARIABLE_NAMES)
        return _parse(os.getcwd(), *values)  # noqa: PTH109  # a Path costs more than the rest of this call, which each emit makes


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
    """Returns the settings of these values, in the order of `VARIABLE_NAMES`; cached, because each emit reads them."""
    home_folder = Path(folder, home or ".nitro")
    database = _database_url(db_url or "sqlite:///nitro.db")
    results_url = database if not database.startswith("sqlite") else f"sqlite:///{home_folder / 'results.db'}"
    return Settings(
        db_url=database,
        is_db_set=bool(db_url),
        broker_url=_broker_url(broker_url or EMBEDDED_BROKER_URL),
        result_backend=result_backend or f"db+{results_url}",
        handlers=_module_names(handlers),
        journal=_check_choice("NITRO_JOURNAL", journal or "off", JOURNAL_VALUES),
        home=home_folder,
        delivery=_check_choice("NITRO_DELIVERY", delivery or "at-least-once", {d: d for d in DELIVERIES}),
        signing_key=signing_key or None,
    )


def signing_key() -> str | None:
    """Returns `Settings.load().signing_key` without a check of the other settings: each message reads it."""
    return os.environ.get("NITRO_SIGNING_KEY") or None


def is_db_set() -> bool:
    """Whether NITRO_DB_URL is set, without a check of the other settings: each emit reads it."""
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
    """Returns the URL with a synchronous driver."""
    _check_scheme("NITRO_DB_URL", url, DATABASE_SCHEMES)
    try:
        return synchronous_url(url)
    except DriverOptionStays as error:
        raise SettingError("NITRO_DB_URL", _mask_password(url), f"a URL without that option: {error}") from error


def synchronous_url(url: str) -> str:
    """Returns the URL with a synchronous driver; PostgreSQL without a driver gets psycopg.

    Raises:
        DriverOptionStays: the URL has an option that the synchronous driver lacks.
    """
    scheme, _, rest = url.partition("://")
    backend, _, driver = scheme.partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    if backend == "postgresql" and not driver:
        return f"postgresql+psycopg://{rest}"
    if driver not in SYNCHRONOUS_DRIVERS:
        return url
    location, separator, query = rest.partition("?")
    if driver == "asyncpg" and separator:
        query = urlencode(
            [(_psycopg_option_name(name), value) for name, value in parse_qsl(query) if _is_translatable(name)]
        )
        separator = "?" if query else ""
    return f"{backend}{SYNCHRONOUS_DRIVERS[driver]}://{location}{separator}{query}"


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
