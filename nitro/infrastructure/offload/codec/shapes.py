"""Enum members, dataclasses and pydantic models: taken apart into a state, rebuilt without their `__init__`."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, Field
from enum import Enum, Flag
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from nitro.errors import PayloadUnreadable
from nitro.infrastructure.offload.codec.references import Refused, reference_of
from nitro.infrastructure.offload.codec.scalars import Json

if TYPE_CHECKING:
    from nitro.infrastructure.offload.codec.reader import Reader
    from nitro.infrastructure.offload.codec.writer import Writer


class EnumShape:
    """Members of one Enum: by name, or by value for a combination of flags."""

    __slots__ = ("_cls", "_members")

    def __init__(self, cls: type[Enum]) -> None:
        self._cls, self._members = cls, cls.__members__

    def write(self, writer: Writer, member: Enum) -> Json:
        """The tagged member."""
        if self._members.get(member._name_) is member:
            return {"$enum": [reference_of(self._cls), member._name_]}
        if isinstance(member, Flag):
            return {"$flag": [reference_of(self._cls), writer.value(member._value_)]}
        raise Refused(self._cls, "it is no member of its Enum by name; pass its value")

    def member(self, name: str) -> Enum:
        """The member of that name."""
        return self._members[name]

    def combination(self, value: object) -> Enum:
        """The flags that make up a value."""
        if not issubclass(self._cls, Flag) or not isinstance(value, int):
            raise PayloadUnreadable(f"{self._cls.__qualname__} has no combinations of flags")
        return self._cls(value)


class DataclassShape:
    """Instances of one dataclass: fields and what else they hold, except cached properties."""

    __slots__ = ("_cached", "_cls", "_fields", "_names")

    def __init__(self, cls: type[Any]) -> None:
        self._cls: type[object] = cls
        self._fields: tuple[Field[Any], ...] = dataclasses.fields(cls)
        self._names = frozenset(field.name for field in self._fields)
        self._cached = _cached_properties(cls)

    def write(self, writer: Writer, instance: object) -> Json:
        """The tagged class and state."""
        return {"$dataclass": [reference_of(self._cls), writer.attributes(self._state(instance))]}

    def read(self, reader: Reader, state: dict[str, Json]) -> object:
        """An equal instance; a field that the sender did not know yet takes its default."""
        instance = object.__new__(self._cls)
        for field in self._fields:
            if field.name in state:
                object.__setattr__(instance, field.name, reader.value(state[field.name]))
            else:
                self._set_default(instance, field)
        if len(state) > len(self._fields) or not self._names.issuperset(state):
            self._read_rest(reader, instance, state)
        return instance

    def _state(self, instance: object) -> dict[str, object]:
        held = getattr(instance, "__dict__", {})
        state = {name: held[name] for name in held if name not in self._cached}
        for field in self._fields:
            if field.name not in state and hasattr(instance, field.name):
                state[field.name] = getattr(instance, field.name)
        return state

    def _set_default(self, instance: object, field: Field[Any]) -> None:
        if field.default is not MISSING:
            object.__setattr__(instance, field.name, field.default)
        elif field.default_factory is not MISSING:
            object.__setattr__(instance, field.name, field.default_factory())
        elif field.init:
            raise PayloadUnreadable(f"{self._cls.__qualname__} arrived without its field {field.name}")

    def _read_rest(self, reader: Reader, instance: object, state: dict[str, Json]) -> None:
        """Keep what is no field, unless slots leave no room, as for a field that no longer exists."""
        held = getattr(instance, "__dict__", None)
        if held is not None:
            held.update((name, reader.value(item)) for name, item in state.items() if name not in self._names)


class ModelShape:
    """Instances of one pydantic model: fields, extra and private attributes, and which fields were set."""

    __slots__ = ("cls", "fields")

    def __init__(self, cls: type[BaseModel]) -> None:
        self.cls, self.fields = cls, cls.model_fields

    def write(self, writer: Writer, model: BaseModel) -> Json:
        """The tagged class and state."""
        return {"$model": self.state(writer, model)}

    def read(self, reader: Reader, state: dict[str, Json]) -> BaseModel:
        """An equal model; validators do not run again."""
        model = self.cls.__new__(self.cls)
        self.restore(reader, model, state)
        return model

    def state(self, writer: Writer, model: BaseModel) -> dict[str, Json]:
        """Class and state as JSON."""
        held = vars(model)
        fields = {name: held[name] for name in self.fields if name in held}
        return {"class": reference_of(self.cls), "fields": writer.attributes(fields)} | pydantic_state(writer, model)

    def restore(self, reader: Reader, model: BaseModel, state: dict[str, Json]) -> None:
        """Put the state into a model that has none; a field added since takes its default."""
        fields = {name: reader.value(item) for name, item in state["fields"].items() if name in self.fields}
        if len(fields) < len(self.fields):
            self._add_defaults(fields)
        vars(model).update(fields)
        restore_pydantic_state(reader, model, state)

    def _add_defaults(self, fields: dict[str, object]) -> None:
        for name, field in self.fields.items():
            if name not in fields and not field.is_required():
                fields[name] = field.get_default(call_default_factory=True, validated_data=fields)


def pydantic_state(writer: Writer, model: BaseModel) -> dict[str, Json]:
    """What pydantic keeps beside the fields, as far as there is any."""
    state: dict[str, Json] = {"set": sorted(model.__pydantic_fields_set__)}
    if model.__pydantic_extra__ is not None:
        state["extra"] = writer.attributes(model.__pydantic_extra__)
    if model.__pydantic_private__ is not None:
        state["private"] = writer.attributes(model.__pydantic_private__)
    return state


def restore_pydantic_state(reader: Reader, model: BaseModel, state: dict[str, Json]) -> None:
    """Put back what `pydantic_state` took; the fields stay as they are."""
    BaseModel.__setstate__(
        model,
        {
            "__dict__": vars(model),
            "__pydantic_fields_set__": set(state["set"]),
            "__pydantic_extra__": _values(reader, state.get("extra")),
            "__pydantic_private__": _values(reader, state.get("private")),
        },
    )


def _values(reader: Reader, state: dict[str, Json] | None) -> dict[str, object] | None:
    return None if state is None else {name: reader.value(item) for name, item in state.items()}


def _cached_properties(cls: type) -> frozenset[str]:
    return frozenset(
        name for base in cls.__mro__ for name, member in vars(base).items() if isinstance(member, cached_property)
    )
