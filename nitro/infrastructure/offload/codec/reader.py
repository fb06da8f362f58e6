"""The reader: turns the text of `encode` into sender and arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from pydantic_core import from_json
from sqlalchemy.exc import SQLAlchemyError

from nitro.errors import EntityVanished, NitroError, PayloadUnreadable
from nitro.infrastructure.offload.codec.entities import EntityShape, TableEntityShape
from nitro.infrastructure.offload.codec.kinds import shape_of
from nitro.infrastructure.offload.codec.references import find_class, find_parametrised
from nitro.infrastructure.offload.codec.scalars import SCALAR_READERS, Json
from nitro.infrastructure.offload.codec.shapes import ORIG_CLASS, DataclassShape, EnumShape, ModelShape
from nitro.infrastructure.offload.codec.writer import FORMAT_VERSION

P = ParamSpec("P")
T = TypeVar("T")

LoadEntity = Callable[[type, object], object | None]

DAMAGE_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, SQLAlchemyError, TypeError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The sender and the arguments of an emission."""

    sender: object
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def decode(text: str, load: LoadEntity | None = None) -> Payload:
    """Returns arguments equal to the encoded ones.

    Args:
        load: reads an entity by class and primary key (a tuple for several columns); returns None without a row.

    Raises:
        PayloadUnreadable: the text is damaged or of another format, or no loaded module has a class.
        EntityVanished: `load` found no row.
    """
    document = _parse_document(text)
    reader = Reader()
    for cls, key in _read_rows(reader, document):
        reader.entities.append(_load_entity(load, cls, key))
    return _read_payload(reader, document)


def _unreadable_if_damaged(read: Callable[P, T]) -> Callable[P, T]:
    """Turns errors of damaged payloads into `PayloadUnreadable`, with a message that shows no values."""

    @wraps(read)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except NitroError:
            raise
        except DAMAGE_ERRORS as error:
            raise PayloadUnreadable(f"the payload is damaged: {type(error).__name__}") from error

    return guarded


class Reader:
    """Turns JSON into values.

    Attributes:
        entities: the entities of the payload, by position.
    """

    __slots__ = ("entities",)

    def __init__(self) -> None:
        self.entities: list[Any] = []

    def value(self, data: Json) -> Any:
        """Returns the value of JSON."""
        if type(data) is dict:
            return self._object(data)
        if type(data) is list:
            return [self.value(item) for item in data]
        return data

    def values(self, data: Json) -> Iterable[Any]:
        """Returns the values of a JSON array."""
        return map(self.value, _check_array(data))

    def _object(self, data: dict[str, Json]) -> Any:
        if len(data) == 1:
            ((tag, body),) = data.items()
            if tag.startswith("$"):
                scalar = SCALAR_READERS.get(tag)
                return scalar(body) if scalar is not None else _tag_reader(tag)(self, body)
        return {name: self.value(item) for name, item in data.items()}


def _read_enum(_reader: Reader, body: Json) -> object:
    reference, name = body
    return _shape_of_kind(reference, EnumShape).member(name)


def _read_flag(reader: Reader, body: Json) -> object:
    reference, value = body
    return _shape_of_kind(reference, EnumShape).combination(reader.value(value))


def _read_dataclass(reader: Reader, body: Json) -> object:
    reference, state = body
    instance = _shape_of_kind(reference, DataclassShape).read(reader, state)
    if type(reference) is list:
        vars(instance)[ORIG_CLASS] = find_parametrised(reference)
    return instance


def _read_model(reader: Reader, body: Json) -> object:
    return _shape_of_kind(body["class"], ModelShape).read(reader, body)


def _tag_reader(tag: str) -> Callable[[Reader, Json], Any]:
    if tag not in TAG_READERS:
        raise PayloadUnreadable(f"the payload has an unknown tag {tag}")
    return TAG_READERS[tag]


def _check_array(data: Json) -> list[Json]:
    if type(data) is not list:
        raise PayloadUnreadable("the payload is damaged: something else stands where an array must be")
    return data


def _shape_of_kind(reference: Json, kind: type[T]) -> T:
    """Returns the shape of a loaded class, which must be of the given kind."""
    shape = shape_of(find_class(reference))
    if type(shape) is not kind:
        raise PayloadUnreadable(f"{reference} is not the kind of class that the payload says it is")
    return shape


def _entity_shape(reference: Json) -> EntityShape:
    shape = shape_of(find_class(reference))
    if not isinstance(shape, EntityShape):
        raise PayloadUnreadable(f"{reference} is no entity")
    return shape


TAG_READERS: dict[str, Callable[[Reader, Json], Any]] = {
    "$tuple": lambda reader, body: tuple(reader.values(body)),
    "$set": lambda reader, body: set(reader.values(body)),
    "$frozenset": lambda reader, body: frozenset(reader.values(body)),
    "$dict": lambda reader, body: {reader.value(key): reader.value(item) for key, item in _check_array(body)},
    "$enum": _read_enum,
    "$flag": _read_flag,
    "$dataclass": _read_dataclass,
    "$model": _read_model,
    "$entity": lambda reader, body: reader.entities[body],
}


@_unreadable_if_damaged
def _parse_document(text: str) -> dict[str, Json]:
    try:
        document = from_json(text, allow_inf_nan=False)
    except ValueError:  # pydantic also fails for deep nesting and for half of a surrogate pair
        document = _parse_with_stdlib(text)
    if type(document) is not dict or document.get("nitro") != FORMAT_VERSION:
        raise PayloadUnreadable(
            f"the payload is not of format {FORMAT_VERSION}; do emitter and worker run the same Nitro?"
        )
    return document


def _refuse_constant(token: str) -> NoReturn:
    raise PayloadUnreadable(f"the payload is damaged: {token} is no JSON")


_parse_with_stdlib: Callable[[str], Json] = json.JSONDecoder(parse_constant=_refuse_constant).decode


@_unreadable_if_damaged
def _read_rows(reader: Reader, document: dict[str, Json]) -> list[tuple[type, object]]:
    """Returns class and primary key of each entity that is to be reloaded."""
    return [(_table_class(reference), reader.value(key)) for reference, key in _check_array(document.get("rows", []))]


def _table_class(reference: Json) -> type:
    _shape_of_kind(reference, TableEntityShape)
    return find_class(reference)


def _load_entity(load: LoadEntity | None, cls: type, key: object) -> object:
    if load is None:
        raise PayloadUnreadable(f"{cls.__name__} is to be reloaded, and this process has no way to load entities")
    entity = load(cls, key)
    if entity is None:
        raise EntityVanished(f"{cls.__name__} {key!r}", "reloading it")
    return entity


@_unreadable_if_damaged
def _read_payload(reader: Reader, document: dict[str, Json]) -> Payload:
    _read_entities(reader, _check_array(document.get("entities", [])))
    return Payload(
        sender=reader.value(document["sender"]),
        args=tuple(reader.values(document["args"])),
        kwargs={name: reader.value(item) for name, item in document["kwargs"].items()},
    )


def _read_entities(reader: Reader, rows: list[Json]) -> None:
    """Rebuilds all entities in three steps: keys, state, links. Each step may need the step before of all entities."""
    shapes = [_entity_shape(row["class"]) for row in rows]
    blanks: list[Any] = [shape.blank_instance(reader, row) for shape, row in zip(shapes, rows, strict=True)]
    reader.entities += blanks
    entities = list(zip(shapes, blanks, rows, strict=True))
    for shape, entity, row in entities:
        shape.restore_state(reader, entity, row)
    for shape, entity, row in entities:
        shape.restore_links(reader, entity, row)
