"""Shapes of Enum classes, dataclasses and pydantic models: write instances as a state, rebuild without `__init__`."""

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
"""The attribute in which typing stores the alias that made an instance, such as `Pair[int]` of `Pair[int](1)`."""


class Writer(Protocol):
    """Writes the parts of a value that has a shape."""

    def value(self, value: object) -> Json:
        """Returns a value as JSON."""

    def attributes(self, state: Mapping[str, object], only: Container[str] | None = None) -> dict[str, Json]:
        """Returns attributes of an object as JSON, or only those with the given names."""


class Reader(Protocol):
    """Reads the parts of a value that has a shape."""

    def value(self, data: Json) -> Any:
        """Returns the value of JSON."""


class EnumShape:
    """Writes and reads members of an Enum: by name, or by value for a combination of flags."""

    __slots__ = ("_cls", "_members")

    def __init__(self, cls: type[Enum]) -> None:
        self._cls, self._members = cls, cls.__members__

    def write(self, writer: Writer, member: Enum) -> Json:
        """Returns the tagged member."""
        if self._members.get(member._name_) is member:
            return {"$enum": [reference_of(self._cls), member._name_]}
        if isinstance(member, Flag):
            return {"$flag": [reference_of(self._cls), writer.value(member._value_)]}
        raise ValueRefused(self._cls, "it is no member of its Enum by name; pass its value")

    def member(self, name: str) -> Enum:
        """Returns the member with a name."""
        if name not in self._members:
            raise PayloadUnreadable(f"{self._cls.__qualname__} has no member {name!r} any more")
        return self._members[name]

    def combination(self, value: object) -> Enum:
        """Returns the combination of flags with a value."""
        if not issubclass(self._cls, Flag) or not isinstance(value, int):
            raise PayloadUnreadable(f"{self._cls.__qualname__} has no combinations of flags")
        try:
            return self._cls(value)
        except ValueError as error:
            raise PayloadUnreadable(f"{self._cls.__qualname__} has no combination {value} any more") from error


class DataclassShape:
    """Writes and reads instances of a dataclass: fields and other attributes, except cached properties."""

    __slots__ = ("_checked", "_cls", "_excluded", "_fields", "_names")

    def __init__(self, cls: type[Any]) -> None:
        self._cls: type[object] = cls
        self._fields: tuple[Field[Any], ...] = dataclasses.fields(cls)
        self._names = frozenset(field.name for field in self._fields)
        self._excluded = _cached_properties(cls) | {ORIG_CLASS}
        self._checked: dict[str, FieldInfo] = getattr(cls, "__pydantic_fields__", {})

    def write(self, writer: Writer, instance: object) -> Json:
        """Returns the tagged class and state."""
        reference = reference_of(self._cls)
        if ORIG_CLASS in getattr(instance, "__dict__", ()):
            reference = parametrised_reference(vars(instance)[ORIG_CLASS], reference)
        return {"$dataclass": [reference, writer.attributes(self._state(instance))]}

    def read(self, reader: Reader, state: dict[str, Json]) -> object:
        """Returns an equal instance; a field that was added after the emit takes its default."""
        instance = object.__new__(self._cls)
        values: dict[str, object] = {}
        for field in self._fields:
            name = field.name
            value = reader.value(state[name]) if name in state else self._default(field, values)
            if value is not PydanticUndefined:
                values[name] = value
                object.__setattr__(instance, name, value)
        if len(state) > len(self._fields) or not self._names.issuperset(state):
            self._read_other_attributes(reader, instance, state)
        return instance

    def _state(self, instance: object) -> dict[str, object]:
        attributes = getattr(instance, "__dict__", {})
        state = {name: attributes[name] for name in attributes if name not in self._excluded}
        for field in self._fields:
            if field.name not in state and hasattr(instance, field.name):
                state[field.name] = getattr(instance, field.name)
        return state

    def _default(self, field: Field[Any], values: dict[str, object]) -> Any:
        """Returns the default of a field that was added after the emit.

        Args:
            values: the values of the fields before it, which a factory of pydantic may use.
        """
        if field.name in self._checked:  # `field.default` of a pydantic dataclass may be a FieldInfo
            value = default_of(self._checked[field.name], values)
        elif field.default_factory is not MISSING:
            value = field.default_factory()
        else:
            value = PydanticUndefined if field.default is MISSING else field.default
        if value is PydanticUndefined and field.init:
            raise missing_field_error(self._cls, field.name)
        return value

    def _read_other_attributes(self, reader: Reader, instance: object, state: dict[str, Json]) -> None:
        """Sets attributes that are no fields; not on an instance without `__dict__`, nor over a method."""
        attributes = getattr(instance, "__dict__", None)
        if attributes is not None:
            names = (name for name in state if name not in self._names and not self._is_code(name))
            attributes.update((name, reader.value(state[name])) for name in names)

    def _is_code(self, name: str) -> bool:
        return hasattr(getattr_static(self._cls, name, None), "__get__")


class ModelShape:
    """Writes and reads instances of a pydantic model: fields, extra and private attributes, names of set fields."""

    __slots__ = ("_pydantic_state", "cls", "fields")

    def __init__(self, cls: type[BaseModel]) -> None:
        self.cls, self.fields = cls, cls.model_fields
        self._pydantic_state = PydanticState(cls)

    def write(self, writer: Writer, model: BaseModel) -> Json:
        """Returns the tagged class and state."""
        return {"$model": self.state(writer, model)}

    def read(self, reader: Reader, state: dict[str, Json]) -> BaseModel:
        """Returns an equal model; validators do not run again."""
        model = self.cls.__new__(self.cls)
        self.restore(reader, model, state)
        return model

    def state(self, writer: Writer, model: BaseModel) -> dict[str, Json]:
        """Returns class and state as JSON."""
        attributes = vars(model)
        fields = {name: attributes[name] for name in self.fields if name in attributes}
        state = {"class": reference_of(self.cls), "fields": writer.attributes(fields)}
        if len(fields) < len(self.fields):
            state["absent"] = sorted(self.fields.keys() - fields.keys())
        self._pydantic_state.write(writer, model, state)
        return state

    def restore(self, reader: Reader, model: BaseModel, state: dict[str, Json]) -> None:
        """Restores the state of a model that has none; a field that was added after the emit takes its default."""
        items = {**(state.get("extra") or {}), **state["fields"]}  # an extra attribute may have become a field
        fields = {name: reader.value(item) for name, item in items.items() if name in self.fields}
        if len(fields) < len(self.fields):
            fields = self._with_defaults(fields, frozenset(state.get("absent", ())))
        vars(model).update(fields)
        self._pydantic_state.restore(reader, model, state)

    def _with_defaults(self, fields: dict[str, object], absent: frozenset[str]) -> dict[str, object]:
        """Returns the fields in the order of the class, with defaults for fields that were added after the emit.

        Args:
            absent: names of fields that the emitter's model had no value for; they stay without one.
        """
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
    """The state that pydantic stores beside the fields: names of set fields, extra and private attributes."""

    __slots__ = ("_extra", "_fields", "_private")

    def __init__(self, cls: type[BaseModel]) -> None:
        self._fields = cls.model_fields
        self._extra = cls.model_config.get("extra") == "allow"
        self._private = cls.__private_attributes__

    def write(self, writer: Writer, model: BaseModel, state: dict[str, Json]) -> None:
        """Adds the names of set fields, and extra and private attributes if there are any, to a state."""
        state["set"] = sorted(model.__pydantic_fields_set__)
        if model.__pydantic_extra__ is not None:
            state["extra"] = writer.attributes(model.__pydantic_extra__)
        if self._private:  # a model that SQLAlchemy has loaded has None
            private = model.__pydantic_private__
            state["private"] = None if private is None else writer.attributes(private)

    def restore(self, reader: Reader, model: BaseModel, state: dict[str, Json]) -> None:
        """Restores what `write` has written; the fields stay as they are."""
        private = None
        if self._private:
            private = self._read_private(vars(model), _read_values(reader, state.get("private", {})))
        extra = self._read_extra(reader, state)
        names = self._fields.keys() | (extra or {}).keys()
        BaseModel.__setstate__(
            model,
            {
                "__dict__": vars(model),
                "__pydantic_fields_set__": names.intersection(state["set"]),
                "__pydantic_extra__": extra,
                "__pydantic_private__": private,
            },
        )

    def _read_extra(self, reader: Reader, state: dict[str, Json]) -> dict[str, object] | None:
        """Returns extra attributes if the class allows them, without any that has become a field."""
        items = (state.get("extra") or {}).items()
        return {name: reader.value(item) for name, item in items if name not in self._fields} if self._extra else None

    def _read_private(self, fields: dict[str, Any], sent: dict[str, Any] | None) -> dict[str, object] | None:
        """Returns the private attributes of the class; one that was added after the emit takes its default."""
        if sent is None:
            return None
        values: dict[str, object] = {}
        for name, attribute in self._private.items():
            value = sent[name] if name in sent else _private_default(attribute, fields | values)
            if value is not PydanticUndefined:
                values[name] = value
        return values


def _private_default(attribute: ModelPrivateAttr, values: dict[str, object]) -> Any:
    factory: Any = attribute.default_factory
    if factory is None:
        return attribute.get_default()
    return factory(values) if getattr(attribute, "default_factory_takes_validated_data", False) else factory()


def default_of(field: FieldInfo, values: dict[str, object]) -> Any:
    """Returns the default of a field, or `PydanticUndefined`.

    Args:
        values: the values of the fields before it, which a factory may use.
    """
    return field.get_default(call_default_factory=True, validated_data=values)


def missing_field_error(cls: type, name: str) -> PayloadUnreadable:
    """Returns the error for a required field that was added to the class after the emit."""
    return PayloadUnreadable(f"{cls.__qualname__} arrived without its field {name}")


def _read_values(reader: Reader, state: dict[str, Json] | None) -> dict[str, object] | None:
    return None if state is None else {name: reader.value(item) for name, item in state.items()}


def _cached_properties(cls: type) -> frozenset[str]:
    return frozenset(
        name for base in cls.__mro__ for name, member in vars(base).items() if isinstance(member, cached_property)
    )
