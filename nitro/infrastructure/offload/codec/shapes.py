"""Enum members, dataclasses and pydantic models: taken apart into a state, rebuilt without their `__init__`."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from dataclasses import MISSING, Field
from enum import Enum, Flag
from functools import cached_property
from inspect import getattr_static
from typing import Any, Protocol

from pydantic import BaseModel
from pydantic.fields import FieldInfo, ModelPrivateAttr
from pydantic_core import PydanticUndefined

from nitro.errors import PayloadUnreadable
from nitro.infrastructure.offload.codec.names import ValueRefused
from nitro.infrastructure.offload.codec.references import parametrised_reference, reference_of
from nitro.infrastructure.offload.codec.scalars import Json

ORIG_CLASS = "__orig_class__"
"""Where typing keeps what a generic class was made with, as in `Pair[int](1)`."""


class Writer(Protocol):
    """Writes the parts of a value that has a shape."""

    def value(self, value: object) -> Json:
        """One value as JSON."""

    def attributes(self, state: Mapping[str, object], only: Container[str] | None = None) -> dict[str, Json]:
        """The named parts of one object, or those of them that are wanted."""


class Reader(Protocol):
    """Reads the parts of a value that has a shape."""

    def value(self, data: Json) -> Any:
        """One value."""


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
        raise ValueRefused(self._cls, "it is no member of its Enum by name; pass its value")

    def member(self, name: str) -> Enum:
        """The member of that name."""
        if name not in self._members:
            raise PayloadUnreadable(f"{self._cls.__qualname__} has no member {name!r} any more")
        return self._members[name]

    def combination(self, value: object) -> Enum:
        """The flags that make up a value."""
        if not issubclass(self._cls, Flag) or not isinstance(value, int):
            raise PayloadUnreadable(f"{self._cls.__qualname__} has no combinations of flags")
        try:
            return self._cls(value)
        except ValueError as error:
            raise PayloadUnreadable(f"{self._cls.__qualname__} has no combination {value} any more") from error


class DataclassShape:
    """Instances of one dataclass: fields and what else they hold, except cached properties."""

    __slots__ = ("_checked", "_cls", "_fields", "_names", "_stays")

    def __init__(self, cls: type[Any]) -> None:
        self._cls: type[object] = cls
        self._fields: tuple[Field[Any], ...] = dataclasses.fields(cls)
        self._names = frozenset(field.name for field in self._fields)
        self._stays = _cached_properties(cls) | {ORIG_CLASS}
        self._checked: dict[str, FieldInfo] = getattr(cls, "__pydantic_fields__", {})

    def write(self, writer: Writer, instance: object) -> Json:
        """The tagged class and state."""
        reference = reference_of(self._cls)
        if ORIG_CLASS in getattr(instance, "__dict__", ()):
            reference = parametrised_reference(vars(instance)[ORIG_CLASS], reference)
        return {"$dataclass": [reference, writer.attributes(self._state(instance))]}

    def read(self, reader: Reader, state: dict[str, Json]) -> object:
        """An equal instance; a field that the sender did not know yet takes its default."""
        instance = object.__new__(self._cls)
        given: dict[str, object] = {}
        for field in self._fields:
            name = field.name
            value = reader.value(state[name]) if name in state else self._default(field, given)
            if value is not PydanticUndefined:
                given[name] = value
                object.__setattr__(instance, name, value)
        if len(state) > len(self._fields) or not self._names.issuperset(state):
            self._read_rest(reader, instance, state)
        return instance

    def _state(self, instance: object) -> dict[str, object]:
        held = getattr(instance, "__dict__", {})
        state = {name: held[name] for name in held if name not in self._stays}
        for field in self._fields:
            if field.name not in state and hasattr(instance, field.name):
                state[field.name] = getattr(instance, field.name)
        return state

    def _default(self, field: Field[Any], given: dict[str, object]) -> Any:
        """The default of a field that the sender did not know yet, beside the values of those before it."""
        if field.name in self._checked:  # of pydantic: its default may be a description of the field
            value = default_of(self._checked[field.name], given)
        elif field.default_factory is not MISSING:
            value = field.default_factory()
        else:
            value = PydanticUndefined if field.default is MISSING else field.default
        if value is PydanticUndefined and field.init:
            raise missing_field_error(self._cls, field.name)
        return value

    def _read_rest(self, reader: Reader, instance: object, state: dict[str, Json]) -> None:
        """Keep what is no field, unless there is no room, as for one that is gone, or it would hide a method."""
        held = getattr(instance, "__dict__", None)
        if held is not None:
            rest = (name for name in state if name not in self._names and not self._is_code(name))
            held.update((name, reader.value(state[name])) for name in rest)

    def _is_code(self, name: str) -> bool:
        return hasattr(getattr_static(self._cls, name, None), "__get__")


class ModelShape:
    """Instances of one pydantic model: fields, extra and private attributes, and which fields were set."""

    __slots__ = ("_beside", "cls", "fields")

    def __init__(self, cls: type[BaseModel]) -> None:
        self.cls, self.fields = cls, cls.model_fields
        self._beside = PydanticState(cls)

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
        state = {"class": reference_of(self.cls), "fields": writer.attributes(fields)}
        if len(fields) < len(self.fields):
            state["absent"] = sorted(self.fields.keys() - fields.keys())
        self._beside.write(writer, model, state)
        return state

    def restore(self, reader: Reader, model: BaseModel, state: dict[str, Json]) -> None:
        """Put the state into a model that has none; a field added since takes its default."""
        given = {**(state.get("extra") or {}), **state["fields"]}  # what was extra may have become a field
        fields = {name: reader.value(item) for name, item in given.items() if name in self.fields}
        if len(fields) < len(self.fields):
            fields = self._with_defaults(fields, frozenset(state.get("absent", ())))
        vars(model).update(fields)
        self._beside.restore(reader, model, state)

    def _with_defaults(self, fields: dict[str, object], absent: frozenset[str]) -> dict[str, object]:
        """With the fields that the class has gained, in its order; the absent ones the sender had not set either."""
        complete: dict[str, object] = {}
        for name, field in self.fields.items():
            if name in fields:
                complete[name] = fields[name]
            elif name not in absent:
                complete[name] = default_of(field, complete)
                if complete[name] is PydanticUndefined:
                    raise missing_field_error(self.cls, name)
        return complete


class PydanticState:
    """What pydantic keeps of instances of one class beside the fields."""

    __slots__ = ("_extra", "_fields", "_private")

    def __init__(self, cls: type[BaseModel]) -> None:
        self._fields = cls.model_fields
        self._extra = cls.model_config.get("extra") == "allow"
        self._private = cls.__private_attributes__

    def write(self, writer: Writer, model: BaseModel, state: dict[str, Json]) -> None:
        """Put into a state, as far as there is any: which fields were set, extra and private attributes."""
        state["set"] = sorted(model.__pydantic_fields_set__)
        if model.__pydantic_extra__ is not None:
            state["extra"] = writer.attributes(model.__pydantic_extra__)
        if self._private:  # a model that SQLAlchemy has loaded has None
            private = model.__pydantic_private__
            state["private"] = None if private is None else writer.attributes(private)

    def restore(self, reader: Reader, model: BaseModel, state: dict[str, Json]) -> None:
        """Put back what was written; the fields stay as they are."""
        private = None
        if self._private:
            private = self._read_private(vars(model), _read_values(reader, state.get("private", {})))
        extra = self._read_extra(reader, state)
        known = self._fields.keys() | (extra or {}).keys()
        BaseModel.__setstate__(
            model,
            {
                "__dict__": vars(model),
                "__pydantic_fields_set__": known.intersection(state["set"]),
                "__pydantic_extra__": extra,
                "__pydantic_private__": private,
            },
        )

    def _read_extra(self, reader: Reader, state: dict[str, Json]) -> dict[str, object] | None:
        """Extra attributes, if the class takes any, but for one that has become a field since."""
        given = (state.get("extra") or {}).items()
        return {name: reader.value(item) for name, item in given if name not in self._fields} if self._extra else None

    def _read_private(self, fields: dict[str, Any], given: dict[str, Any] | None) -> dict[str, object] | None:
        """Those that the class has; one added since takes its default."""
        if given is None:
            return None
        made: dict[str, object] = {}
        for name, attribute in self._private.items():
            value = given[name] if name in given else _private_default(attribute, fields | made)
            if value is not PydanticUndefined:
                made[name] = value
        return made


def _private_default(attribute: ModelPrivateAttr, given: dict[str, object]) -> Any:
    factory: Any = attribute.default_factory
    if factory is None:
        return attribute.get_default()
    return factory(given) if getattr(attribute, "default_factory_takes_validated_data", False) else factory()


def default_of(field: FieldInfo, given: dict[str, object]) -> Any:
    """The default of a field, beside the values of those before it; `PydanticUndefined` if it has none."""
    return field.get_default(call_default_factory=True, validated_data=given)


def missing_field_error(cls: type, name: str) -> PayloadUnreadable:
    """The error for a required field that the class has gained since."""
    return PayloadUnreadable(f"{cls.__qualname__} arrived without its field {name}")


def _read_values(reader: Reader, state: dict[str, Json] | None) -> dict[str, object] | None:
    return None if state is None else {name: reader.value(item) for name, item in state.items()}


def _cached_properties(cls: type) -> frozenset[str]:
    return frozenset(
        name for base in cls.__mro__ for name, member in vars(base).items() if isinstance(member, cached_property)
    )
