"""Values are checked when they are stored: SQLModel does not check the constructor of a table class."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError
from sqlmodel import SQLModel

from nitro.errors import InvalidEntity
from nitro.infrastructure.repository.graph import state_of


def validate(objects: Iterable[SQLModel]) -> None:
    """Check new and changed objects against their fields and validators; assign what these made of the values.

    Raises:
        InvalidEntity: a value is not allowed; no object was changed.
    """
    checked = [(found, _validated_values(found)) for found in objects if _must_validate(found)]
    for found, values in checked:
        for name, value in values.items():
            if _is_different(value, getattr(found, name)):
                setattr(found, name, value)


def _must_validate(entity: SQLModel) -> bool:
    state = state_of(entity)
    return state.key is None or state.modified


def _validated_values(entity: SQLModel) -> dict[str, Any]:
    """The values as the model's own validators return them.

    The namespace keeps relationships out: pydantic would mistake one called `items` for a method of dict.
    """
    given = _explicit_values(entity)
    try:
        valid = type(entity).model_validate(SimpleNamespace(**given), from_attributes=True)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, reason['loc']))}: {reason['msg']}" for reason in error.errors()]
        raise InvalidEntity(type(entity).__name__, reasons) from error
    return {name: getattr(valid, name) for name in type(entity).model_fields if name in given}


def _explicit_values(entity: SQLModel) -> dict[str, Any]:
    """The values by field name and alias, without defaults: pydantic does not check those either."""
    given: dict[str, Any] = {}
    for name, field in type(entity).model_fields.items():
        value = getattr(entity, name)
        if field.is_required() or field.default_factory is not None or value is not field.default:
            given[name] = value
            if isinstance(field.validation_alias, str):
                given[field.validation_alias] = value
    return given


def _is_different(value: object, current: object) -> bool:
    return value is not current and (type(value) is not type(current) or value != current)
