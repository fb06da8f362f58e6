"""What the caller asks for, as SQL expressions; nothing here touches a database."""

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

# SQLModel types `Order.total > 5` as bool, since `Order.total` is typed as a float.
Condition: TypeAlias = ColumnElement[bool] | bool
Order: TypeAlias = Any
Ordering: TypeAlias = Order | Sequence[Order] | None


def mapper_of(entity: type[E], action: str) -> Mapper[E]:
    """The mapper of a class that has a table.

    Raises:
        NotATable: it has none.
    """
    mapper: Mapper[E] | None = inspect(entity, raiseerr=False)
    if mapper is None:
        raise NotATable(entity.__name__, action)
    return mapper


def check_conditions(entity: type[E], action: str, given: Sequence[Condition]) -> Sequence[ColumnElement[bool]]:
    """The same expressions, none of them a plain Python value.

    Raises:
        NotACondition: one is, as in `where(Order.total is None)`, which Python answers before SQL sees it.
    """
    for expression in given:
        if not hasattr(expression, "__clause_element__") and not isinstance(expression, ClauseElement):
            raise NotACondition(entity.__name__, action, repr(expression))
    return given  # type: ignore[return-value]  # the loop above has just made sure


def field_conditions(entity: type[E], fields: Mapping[str, object]) -> list[ColumnElement[bool]]:
    """One condition a field: equal to the value, or one of the values of a list, tuple or set."""
    return [_value_condition(_attribute(entity, name), value) for name, value in fields.items()]


def text_condition(entity: type[E], text: str, fields: Iterable[str] | None) -> ColumnElement[bool]:
    """Whether one of the fields contains the text, whatever the case."""
    chosen = [_attribute(entity, name) for name in fields] if fields is not None else _text_attributes(entity)
    return or_(false(), *(attribute.icontains(text, autoescape=True) for attribute in chosen))


def order_expressions(entity: type[E], order_by: Ordering) -> list[Order]:
    """What to order by; the primary key decides among equals, so that pages do not overlap."""
    given = order_by if isinstance(order_by, list | tuple) else () if order_by is None else (order_by,)
    return [*(_order_expression(entity, order) for order in given), *inspect(entity).primary_key]


def _value_condition(attribute: InstrumentedAttribute[Any], value: object) -> ColumnElement[bool]:
    if not isinstance(value, list | tuple | set | frozenset):
        return attribute == value
    known = attribute.in_([one for one in value if one is not None])
    return or_(known, attribute.is_(None)) if None in value else known


def _order_expression(entity: type[E], order: Order) -> Order:
    if not isinstance(order, str):
        return order
    attribute = _attribute(entity, order.removeprefix("-"))
    falling: UnaryExpression[Any] = attribute.desc()
    return falling if order.startswith("-") else attribute


def _attribute(entity: type[E], name: str) -> InstrumentedAttribute[Any]:
    mapper = inspect(entity)
    known = [*mapper.column_attrs.keys(), *mapper.relationships.keys()]
    if name not in known:
        raise UnknownField(entity.__name__, name, get_close_matches(name, known, n=1))
    attribute: InstrumentedAttribute[Any] = getattr(entity, name)
    return attribute


def _text_attributes(entity: type[E]) -> list[InstrumentedAttribute[Any]]:
    """The columns that hold text for people: of type text, and no keys."""
    return [
        getattr(entity, key)
        for key, attribute in inspect(entity).column_attrs.items()
        if _is_text_type(attribute.columns[0].type) and not _is_key(attribute.columns)
    ]


def _is_text_type(kind: TypeEngine[Any]) -> bool:
    stored = kind.impl_instance if isinstance(kind, TypeDecorator) else kind
    return isinstance(stored, String) and not isinstance(stored, Enum)


def _is_key(columns: Collection[Any]) -> bool:
    return any(getattr(column, "primary_key", False) or getattr(column, "foreign_keys", ()) for column in columns)
