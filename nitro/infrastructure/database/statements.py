"""Statements that run for each delivery: their SQL is compiled once for each dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import ClauseElement, Connection, CursorResult, Dialect, Executable

Values = Mapping[str, object]


class _CompiledText(NamedTuple):
    """A compiled statement, ready for the driver.

    Attributes:
        constants: values that are part of the statement, converted for the driver.
        positions: names of the parameters in their order, for a driver with positional parameters.
    """

    sql: str
    constants: dict[str, Any]
    positions: tuple[str, ...] | None


_statements: WeakSet[CachedStatement] = WeakSet()


def clear_cache() -> None:
    """Drops the SQL of all statements, as their tables are in another schema now."""
    for statement in _statements:
        statement.clear()


class CachedStatement:
    """A statement whose SQL is cached by dialect. SQLAlchemy's own cache lookup takes as long as inserting one row.

    Args:
        make: returns the statement for the name of a dialect; its parameters are named, and none is a list.
    """

    def __init__(self, make: Callable[[str], Executable]) -> None:
        self._build = cache(make)
        self._texts: WeakKeyDictionary[Dialect, _CompiledText | None] = WeakKeyDictionary()
        _statements.add(self)

    def clear(self) -> None:
        """Drops the SQL."""
        self._texts.clear()

    def execute(self, connection: Connection, values: Values) -> CursorResult[Any]:
        """Executes the statement as `connection.execute` does, but rows hold the driver's unconverted values."""
        dialect = connection.dialect
        try:
            text = self._texts[dialect]
        except KeyError:
            text = self._texts[dialect] = _compile(self._build(dialect.name), dialect)
        if text is None or connection.get_execution_options().get("schema_translate_map"):
            return connection.execute(self._build(dialect.name), values)
        parameters = {**text.constants, **values}
        if text.positions is None:
            return connection.exec_driver_sql(text.sql, parameters)
        return connection.exec_driver_sql(text.sql, tuple(map(parameters.__getitem__, text.positions)))


def _compile(statement: Executable, dialect: Dialect) -> _CompiledText | None:
    """Compiles a statement; returns None if SQLAlchemy has to process its parameters at each execution."""
    assert isinstance(statement, ClauseElement)
    compiled: Any = statement.compile(dialect=dialect)
    processors = compiled._bind_processors
    if compiled.post_compile_params or any(compiled.binds[name].required for name in processors):
        return None
    constants = {name: bind.effective_value for name, bind in compiled.binds.items() if not bind.required}
    constants |= {name: process(constants[name]) for name, process in processors.items()}
    return _CompiledText(str(compiled), constants, tuple(compiled.positiontup) if compiled.positional else None)
