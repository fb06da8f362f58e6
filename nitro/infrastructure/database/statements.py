"""Statements that each delivery executes: their text is made once for each database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import ClauseElement, Connection, CursorResult, Dialect, Executable

Values = Mapping[str, object]


class _CompiledText(NamedTuple):
    """What a driver is given.

    Attributes:
        constants: the values that the statement holds itself, as the driver takes them.
        positions: names of the parameters, for a driver that takes them by position.
    """

    sql: str
    constants: dict[str, Any]
    positions: tuple[str, ...] | None


_statements: WeakSet[CachedStatement] = WeakSet()


def clear_cache() -> None:
    """Make all texts of all statements anew: their tables are elsewhere."""
    for statement in _statements:
        statement.clear()


class CachedStatement:
    """A statement whose text is kept, where SQLAlchemy looks for it each time, which costs as much as an order does.

    Args:
        make: the statement, for the dialect of this name; its parameters are named, and are no lists.
    """

    def __init__(self, make: Callable[[str], Executable]) -> None:
        self._build = cache(make)
        self._texts: WeakKeyDictionary[Dialect, _CompiledText | None] = WeakKeyDictionary()
        _statements.add(self)

    def clear(self) -> None:
        """Make all texts anew."""
        self._texts.clear()

    def execute(self, connection: Connection, values: Values) -> CursorResult[Any]:
        """What `connection.execute` does; of a row the driver's own values are returned."""
        dialect = connection.dialect
        try:
            text = self._texts[dialect]
        except KeyError:
            text = self._texts[dialect] = _compile(self._build(dialect.name), dialect)
        if text is None or connection.get_execution_options().get("schema_translate_map"):
            return connection.execute(self._build(dialect.name), values)
        given = {**text.constants, **values}
        if text.positions is None:
            return connection.exec_driver_sql(text.sql, given)
        return connection.exec_driver_sql(text.sql, tuple(map(given.__getitem__, text.positions)))


def _compile(statement: Executable, dialect: Dialect) -> _CompiledText | None:
    """None where SQLAlchemy has something to do at each execution."""
    assert isinstance(statement, ClauseElement)
    compiled: Any = statement.compile(dialect=dialect)
    processors = compiled._bind_processors
    if compiled.post_compile_params or any(compiled.binds[name].required for name in processors):
        return None
    constants = {name: bind.effective_value for name, bind in compiled.binds.items() if not bind.required}
    constants |= {name: process(constants[name]) for name, process in processors.items()}
    return _CompiledText(str(compiled), constants, tuple(compiled.positiontup) if compiled.positional else None)
