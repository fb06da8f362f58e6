"""The writer: turns the sender and the arguments of an emission into text."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic_core import to_json

from nitro.errors import PayloadError
from nitro.infrastructure.offload.codec.entities import EntityShape
from nitro.infrastructure.offload.codec.kinds import builtin_behind, refusal_reason, shape_of
from nitro.infrastructure.offload.codec.names import ValueRefused
from nitro.infrastructure.offload.codec.scalars import SCALAR_WRITERS, Json, is_json_safe

FORMAT_VERSION = 1
MAX_LEVELS = 100
ATTRIBUTE_STEP, MEMBER_STEP = ".", "["

Origin = tuple[int | None, str]
"""The start of a path to a value: the position of an entity, or None and the name of an argument."""

_write_with_stdlib = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":")).encode


def encode(
    sender: object,
    args: tuple[Any, ...],
    kwargs: Mapping[str, object],
    *,
    entity: Literal["snapshot", "reload"] = "snapshot",
) -> str:
    """Returns ASCII JSON from which `decode` makes equal arguments in another process.

    Args:
        entity: "snapshot" writes entities as they are now, "reload" their class and primary key only.

    Raises:
        PayloadError: the codec cannot write a value; names its place.
    """
    writer = Writer(reload=entity == "reload")
    try:
        return _encode_json(writer.document(sender, args, kwargs))
    except ValueRefused as refused:
        raise PayloadError(writer.place(), refused.kind, refused.why) from refused.__cause__


def _encode_json(document: Json) -> str:
    """Returns ASCII JSON: by pydantic, in a third of the time, unless its text is not ASCII or it fails."""
    text = quick_json(document)
    return text if text is not None and text.isascii() else _write_with_stdlib(document)


def quick_json(value: Json) -> str | None:
    """Returns JSON by pydantic's writer; None if it fails: for deep nesting, or half of a surrogate pair."""
    try:
        return to_json(value).decode()
    except ValueError:
        return None


class Writer:
    """Turns values into JSON, and records the path to the current value and the entities that it has met."""

    __slots__ = ("_entities", "_levels", "_origin", "_path", "_positions", "_reload")

    def __init__(self, *, reload: bool) -> None:
        self._reload = reload
        self._origin: Origin = (None, "sender")
        self._path: list[Any] = []  # two items a level: ATTRIBUTE or MEMBER, and the step
        self._levels = MAX_LEVELS
        self._positions: dict[int, int] = {}
        self._entities: list[tuple[Any, Origin, tuple[Any, ...]]] = []

    def document(self, sender: object, args: Iterable[object], kwargs: Mapping[str, object]) -> Json:
        """Returns the whole payload; the rows come last, because the values before them refer to the entities."""
        document = {
            "nitro": FORMAT_VERSION,
            "sender": self.value(sender),
            "args": [self._argument(f"args[{index}]", value) for index, value in enumerate(args)],
            "kwargs": {name: self._argument(f"kwargs[{name!r}]", value) for name, value in kwargs.items()},
        }
        document["rows" if self._reload else "entities"] = self._rows()
        return document

    def value(self, value: object) -> Json:
        """Returns a value as JSON."""
        scalar = SCALAR_WRITERS.get(type(value))
        return scalar(value) if scalar is not None else self._write_structure(value)

    def _write_structure(self, value: object) -> Json:
        write = STRUCTURE_WRITERS.get(type(value)) or _add_writer(type(value))
        return write(self, value)

    def attributes(self, state: Mapping[str, object], only: Container[str] | None = None) -> dict[str, Json]:
        """Returns attributes of an object as JSON, one level deeper.

        Args:
            only: names of the attributes to write; None for all.
        """
        if not state:
            return {}
        self._begin_level(ATTRIBUTE_STEP, state)
        written, path = {}, self._path
        for name, item in state.items():
            if only is not None and name not in only:
                continue
            if type(item) is str and item.isascii():  # a shortcut for the many text columns of entities
                written[name] = item
                continue
            path[-1] = name
            scalar = SCALAR_WRITERS.get(type(item))
            written[name] = scalar(item) if scalar is not None else self._write_structure(item)
        self._end_level()
        return written

    def place(self) -> str:
        """Returns the path to the current value, such as `kwargs['items'][2].price`."""
        (position, name), text = self._origin, _path_text(self._path)
        while position is not None:
            _, (position, name), path = self._entities[position]
            text = _path_text(path) + text
        return name + (text if len(text) <= 200 else f"{text[:90]}…{text[-90:]}")

    def _argument(self, name: str, value: object) -> Json:
        self._origin = (None, name)
        return self.value(value)

    def _rows(self) -> list[Json]:
        """Returns a row for each entity; to write one may add more entities."""
        rows: list[Json] = []
        self._levels = MAX_LEVELS + 1
        for position, (entity, _, _) in enumerate(self._entities):
            self._origin = (position, "")
            shape: Any = shape_of(type(entity))
            rows.append(shape.key(self, entity) if self._reload else shape.snapshot(self, entity))
        return rows

    def _begin_level(self, style: str, value: object) -> None:
        if len(self._path) >= 2 * self._levels:
            why = (
                f"it is nested more than {MAX_LEVELS} levels deep, or contains itself; pass a flatter value, or its id"
            )
            raise ValueRefused(type(value), why)
        self._path += (style, None)

    def _end_level(self) -> None:
        del self._path[-2:]

    def _entity(self, entity: object) -> Json:
        position = self._positions.get(id(entity))
        if position is None:
            position = self._positions[id(entity)] = len(self._entities)
            self._entities.append((entity, self._origin, tuple(self._path)))
        return {"$entity": position}

    def _list(self, values: Iterable[object]) -> list[Json]:
        self._begin_level(MEMBER_STEP, values)
        written = []
        for index, item in enumerate(values):
            self._path[-1] = index
            written.append(self.value(item))
        self._end_level()
        return written

    def _members(self, values: Iterable[object]) -> list[Json]:
        self._begin_level(MEMBER_STEP, values)
        written = []
        for member in values:
            self._path[-1] = member
            written.append(self.value(member))
        self._end_level()
        return written

    def _dict(self, values: dict[object, object]) -> Json:
        if not all(map(_is_plain_key, values)):
            return {"$dict": self._pairs(values)}
        self._begin_level(MEMBER_STEP, values)
        written = {}
        for key, item in values.items():
            self._path[-1] = key
            written[key] = self.value(item)
        self._end_level()
        return written

    def _pairs(self, values: dict[object, object]) -> list[Json]:
        self._begin_level(MEMBER_STEP, values)
        written = []
        for key, item in values.items():
            self._path[-1] = key
            written.append([self.value(key), self.value(item)])
        self._end_level()
        return written


STRUCTURE_WRITERS: dict[type, Callable[[Writer, Any], Json]] = {
    list: Writer._list,
    tuple: lambda writer, values: {"$tuple": writer._list(values)},
    set: lambda writer, values: {"$set": writer._members(values)},
    frozenset: lambda writer, values: {"$frozenset": writer._members(values)},
    dict: Writer._dict,
}


def _add_writer(cls: type[object]) -> Callable[[Writer, Any], Json]:
    STRUCTURE_WRITERS[cls] = write = _writer_for(cls)
    return write


def _writer_for(cls: type[object]) -> Callable[[Writer, Any], Json]:
    builtin, shape = builtin_behind(cls), shape_of(cls)
    if builtin is not None:
        return STRUCTURE_WRITERS[builtin]
    if shape is None:
        raise ValueRefused(cls, refusal_reason(cls))
    return Writer._entity if isinstance(shape, EntityShape) else shape.write


def _is_plain_key(key: object) -> bool:
    """Whether a dict key can be a JSON name without looking like a tag."""
    return type(key) is str and not key.startswith("$") and is_json_safe(key)


def _path_text(path: Sequence[Any]) -> str:
    steps = zip(path[::2], path[1::2], strict=True)
    return "".join(f".{step}" if style == ATTRIBUTE_STEP else f"[{reprlib.repr(step)}]" for style, step in steps)
