"""Statements that each delivery executes: their text is made once for each database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import ClauseElement, Connection, CursorResult, Dialect, Executable

Values = Mapping[str, object]


class _Text(NamedTuple):
    """What a driver is given.

    Attributes:
        fixed: the values that the statement holds itself, as the driver takes them.
        order: names of the parameters, for a driver that takes them by position.
    """

    sql: str
    fixed: dict[str, Any]
    order: tuple[str, ...] | None


_prepared: WeakSet[Prepared] = WeakSet()


def forget() -> None:
    """Make all texts of all statements anew: their tables are elsewhere."""
    for statement in _prepared:
        statement.forget()


class Prepared:
    """A statement whose text is kept, where SQLAlchemy looks for it each time, which costs as much as an order does.

    Args:
        make: the statement, for the dialect of this name; its parameters are named, and are no lists.
    """

    def __init__(self, make: Callable[[str], Executable]) -> None:
        self._made = cache(make)
        self._texts: WeakKeyDictionary[Dialect, _Text | None] = WeakKeyDictionary()
        _prepared.add(self)

    def forget(self) -> None:
        """Make all texts anew."""
        self._texts.clear()

    def execute(self, connection: Connection, values: Values) -> CursorResult[Any]:
        """What `connection.execute` does; of a row the driver's own values are returned."""
        dialect = connection.dialect
        try:
            text = self._texts[dialect]
        except KeyError:
            text = self._texts[dialect] = _text(self._made(dialect.name), dialect)
        if text is None or connection.get_execution_options().get("schema_translate_map"):
            return connection.execute(self._made(dialect.name), values)
        given = {**text.fixed, **values}
        if text.order is None:
            return connection.exec_driver_sql(text.sql, given)
        return connection.exec_driver_sql(text.sql, tuple(map(given.__getitem__, text.order)))


def _text(statement: Executable, dialect: Dialect) -> _Text | None:
    """None where SQLAlchemy has something to do at each execution."""
    assert isinstance(statement, ClauseElement)
    compiled: Any = statement.compile(dialect=dialect)
    processors = compiled._bind_processors
    if compiled.post_compile_params or any(compiled.binds[name].required for name in processors):
        return None
    fixed = {name: bind.effective_value for name, bind in compiled.binds.items() if not bind.required}
    fixed |= {name: process(fixed[name]) for name, process in processors.items()}
    return _Text(str(compiled), fixed, tuple(compiled.positiontup) if compiled.positional else None)
