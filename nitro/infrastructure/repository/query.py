"""SQL expressions for conditions and orders; no function here uses a database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import ClauseElement, ColumnElement, Enum, String, TypeDecorator, UnaryExpression, false, inspect, or_
from sqlalchemy.orm import InstrumentedAttribute, Mapper
from sqlalchemy.types import TypeEngine
from sqlmodel import SQLModel

from nitro.errors import NotACondition, NotATable, UnknownField

E = TypeVar("E", bound=SQLModel)

# SQLModel declares `Order.total` as a float, so for a type checker `Order.total > 5` is a bool.
Condition: TypeAlias = ColumnElement[bool] | bool
Order: TypeAlias = Any
Ordering: TypeAlias = Order | Sequence[Order] | None


def mapper_of(entity: type[E], action: str) -> Mapper[E]:
    """Returns the mapper of a class that has a table.

    Raises:
        NotATable: the class has no table.
    """
    mapper: Mapper[E] | None = inspect(entity, raiseerr=False)
    if mapper is None:
        raise NotATable(entity.__name__, action)
    return mapper


def check_conditions(entity: type[E], action: str, conditions: Sequence[Condition]) -> Sequence[ColumnElement[bool]]:
    """Returns the conditions if each is an SQL expression.

    Raises:
        NotACondition: a condition is a Python value, as in `where(Order.total is None)`, which Python evaluates.
    """
    for expression in conditions:
        if not hasattr(expression, "__clause_element__") and not isinstance(expression, ClauseElement):
            raise NotACondition(entity.__name__, action, repr(expression))
    return conditions  # type: ignore[return-value]  # the loop above has checked it


def field_conditions(entity: type[E], fields: Mapping[str, object]) -> list[ColumnElement[bool]]:
    """Returns a condition for each field: equal to the value, or to one value of a list, tuple or set."""
    return [_value_condition(_attribute(entity, name), value) for name, value in fields.items()]


def text_condition(entity: type[E], text: str, fields: Iterable[str] | None) -> ColumnElement[bool]:
    """Returns the condition that one of the fields contains the text; upper and lower case are equal."""
    attributes = [_attribute(entity, name) for name in fields] if fields is not None else _text_attributes(entity)
    return or_(false(), *(attribute.icontains(text, autoescape=True) for attribute in attributes))


def order_expressions(entity: type[E], order_by: Ordering) -> list[Order]:
    """Returns the expressions of ORDER BY, with the primary key last, so that pages do not overlap."""
    orders = order_by if isinstance(order_by, list | tuple) else () if order_by is None else (order_by,)
    return [*(_order_expression(entity, order) for order in orders), *inspect(entity).primary_key]


def _value_condition(attribute: InstrumentedAttribute[Any], value: object) -> ColumnElement[bool]:
    if not isinstance(value, list | tuple | set | frozenset):
        return attribute == value
    among_values = attribute.in_([member for member in value if member is not None])
    return or_(among_values, attribute.is_(None)) if None in value else among_values


def _order_expression(entity: type[E], order: Order) -> Order:
    if not isinstance(order, str):
        return order
    attribute = _attribute(entity, order.removeprefix("-"))
    descending: UnaryExpression[Any] = attribute.desc()
    return descending if order.startswith("-") else attribute


def _attribute(entity: type[E], name: str) -> InstrumentedAttribute[Any]:
    mapper = inspect(entity)
    names = [*mapper.column_attrs.keys(), *mapper.relationships.keys()]
    if name not in names:
        raise UnknownField(entity.__name__, name, get_close_matches(name, names, n=1))
    attribute: InstrumentedAttribute[Any] = getattr(entity, name)
    return attribute


def _text_attributes(entity: type[E]) -> list[InstrumentedAttribute[Any]]:
    """Returns the columns of a text type that are neither primary nor foreign keys."""
    return [
        getattr(entity, key)
        for key, attribute in inspect(entity).column_attrs.items()
        if _is_text_type(attribute.columns[0].type) and not _is_key(attribute.columns)
    ]


def _is_text_type(column_type: TypeEngine[Any]) -> bool:
    implementation = column_type.impl_instance if isinstance(column_type, TypeDecorator) else column_type
    return isinstance(implementation, String) and not isinstance(implementation, Enum)


def _is_key(columns: Collection[Any]) -> bool:
    return any(getattr(column, "primary_key", False) or getattr(column, "foreign_keys", ()) for column in columns)
