"""The shape of a class, which writes and reads its instances, or the reason why the codec refuses them."""

from __future__ import annotations

from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import inspect
from sqlalchemy.ext.mutable import Mutable
from sqlalchemy.orm.collections import InstrumentedList, InstrumentedSet

from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.offload.codec.entities import StandaloneEntityShape, TableEntityShape
from nitro.infrastructure.offload.codec.shapes import DataclassShape, EnumShape, ModelShape

Shape = EnumShape | DataclassShape | ModelShape | StandaloneEntityShape | TableEntityShape

BUILTINS = (int, float, str, bytes, list, dict, tuple, set, frozenset, datetime, date, time, timedelta, Decimal, UUID)

_shapes: dict[type, Shape | None] = {}


def shape_of(cls: type) -> Shape | None:
    """Returns the shape that writes and reads instances of exactly this class; None if the codec refuses them."""
    if cls not in _shapes:
        _shapes[cls] = _new_shape(cls)
    return _shapes[cls]


def builtin_behind(cls: type) -> type | None:
    """Returns the builtin that SQLAlchemy replaces by this class, as in a relationship or tracked JSON, or None."""
    if not issubclass(cls, InstrumentedList | InstrumentedSet | Mutable):
        return None
    return next((builtin for builtin in (list, set, dict) if issubclass(cls, builtin)), None)


def refusal_reason(cls: type) -> str:
    """Returns why the codec refuses instances of a class, and what to pass instead."""
    for builtin in BUILTINS:
        if issubclass(cls, builtin):
            name = builtin.__name__
            return f"a subclass of {name} would arrive as a plain {name}; convert it to one, or use a dataclass"
    return (
        "only None, bool, numbers, str, bytes, dates and times, UUID, Enum members, list, tuple, set, dict, "
        "dataclasses, pydantic models and entities do; pass one of these, such as its id or its text"
    )


def _new_shape(cls: type) -> Shape | None:
    if issubclass(cls, Enum):
        return EnumShape(cls)
    if inspect(cls, raiseerr=False) is not None:
        return TableEntityShape(cls)
    if issubclass(cls, Entity):
        return StandaloneEntityShape(cls)
    if issubclass(cls, BaseModel):
        return ModelShape(cls)
    if is_dataclass(cls) and not issubclass(cls, (*BUILTINS, BaseException)):
        return DataclassShape(cls)
    return None
