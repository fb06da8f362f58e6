"""Given: rows that a statement gets as one parameter, a JSON array of objects: it is the same for any number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import BindParameter, Column, FromClause, func, literal_column, select
from sqlalchemy.types import TypeEngine


def given(dialect: str, rows: BindParameter[str], columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
    """A table of these columns."""
    if dialect == "postgresql":
        objects = func.json_to_recordset(rows.op("::")(literal_column("json")))
        typed = objects.table_valued(*(Column(name, type_) for name, type_ in columns.items()))
        return typed.render_derived(name="given", with_types=True)
    each = func.json_each(rows).table_valued("value").alias("each")
    values = (func.json_extract(each.c.value, f"$.{name}", type_=type_).label(name) for name, type_ in columns.items())
    return select(*values).subquery("given")
