"""Validation at a save, because SQLModel does not validate in the constructor of a table class."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError
from sqlmodel import SQLModel

from nitro.errors import InvalidEntity
from nitro.infrastructure.repository.graph import state_of


def validate(objects: Iterable[SQLModel]) -> None:
    """Checks new and changed objects against their fields and validators, and assigns the values that these return.

    Raises:
        InvalidEntity: a value is not allowed; no object was changed.
    """
    validated = [(member, _validated_values(member)) for member in objects if _must_validate(member)]
    for member, values in validated:
        for name, value in values.items():
            if _is_different(value, getattr(member, name)):
                setattr(member, name, value)


def _must_validate(entity: SQLModel) -> bool:
    state = state_of(entity)
    return state.key is None or state.modified


def _validated_values(entity: SQLModel) -> dict[str, Any]:
    """Returns the values as the validators of the model return them.

    The namespace leaves relationships out: pydantic would take a relationship `items` for the method of dict.
    """
    values = _explicit_values(entity)
    try:
        valid = type(entity).model_validate(SimpleNamespace(**values), from_attributes=True)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, reason['loc']))}: {reason['msg']}" for reason in error.errors()]
        raise InvalidEntity(type(entity).__name__, reasons) from error
    return {name: getattr(valid, name) for name in type(entity).model_fields if name in values}


def _explicit_values(entity: SQLModel) -> dict[str, Any]:
    """Returns the values by field name and alias, without defaults, which pydantic does not validate either."""
    values: dict[str, Any] = {}
    for name, field in type(entity).model_fields.items():
        value = getattr(entity, name)
        if field.is_required() or field.default_factory is not None or value is not field.default:
            values[name] = value
            if isinstance(field.validation_alias, str):
                values[field.validation_alias] = value
    return values


def _is_different(value: object, current: object) -> bool:
    return value is not current and (type(value) is not type(current) or value != current)
