"""encode: one emission's sender and arguments as text."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic_core import to_json

from nitro.errors import PayloadError
from nitro.infrastructure.offload.codec.entities import EntityShape
from nitro.infrastructure.offload.codec.kinds import reason_against, shape_of, stood_in_for
from nitro.infrastructure.offload.codec.names import Refused
from nitro.infrastructure.offload.codec.scalars import SCALARS, Json, plain_text

FORMAT = 1
LEVELS = 100
ATTRIBUTE, MEMBER = ".", "["

Origin = tuple[int | None, str]  # the position of the entity that refers to a value, or the name of the argument

_slowly = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":")).encode


def encode(
    sender: object,
    args: tuple[Any, ...],
    kwargs: Mapping[str, object],
    *,
    entity: Literal["snapshot", "reload"] = "snapshot",
) -> str:
    """ASCII JSON from which `decode` makes equal arguments in another process.

    Args:
        entity: "snapshot" takes entities as they are now, "reload" only their class and primary key.

    Raises:
        PayloadError: something in there cannot travel; names where it is.
    """
    writer = Writer(reload=entity == "reload")
    try:
        return _to_text(writer.document(sender, args, kwargs))
    except Refused as refused:
        raise PayloadError(writer.place(), refused.kind, refused.why) from refused.__cause__


def _to_text(document: Json) -> str:
    """ASCII JSON; of what pydantic nests deeply enough for, or writes in ASCII, in a third of the time."""
    text = quick_json(document)
    return text if text is not None and text.isascii() else _slowly(document)


def quick_json(value: Json) -> str | None:
    """JSON as pydantic writes it; None of what it does not take: too deep, or a text with half of a surrogate pair."""
    try:
        return to_json(value).decode()
    except ValueError:
        return None


class Writer:
    """Turns values into JSON and remembers which one it is at, and which entities it met."""

    __slots__ = ("_found", "_levels", "_origin", "_path", "_positions", "_reload")

    def __init__(self, *, reload: bool) -> None:
        self._reload = reload
        self._origin: Origin = (None, "sender")
        self._path: list[Any] = []  # two items a level: ATTRIBUTE or MEMBER, and the step
        self._levels = LEVELS
        self._positions: dict[int, int] = {}
        self._found: list[tuple[Any, Origin, tuple[Any, ...]]] = []

    def document(self, sender: object, args: Iterable[object], kwargs: Mapping[str, object]) -> Json:
        """The whole payload; the rows come last because the values before tell which are needed."""
        document = {
            "nitro": FORMAT,
            "sender": self.value(sender),
            "args": [self._argument(f"args[{index}]", value) for index, value in enumerate(args)],
            "kwargs": {name: self._argument(f"kwargs[{name!r}]", value) for name, value in kwargs.items()},
        }
        document["rows" if self._reload else "entities"] = self._rows()
        return document

    def value(self, value: object) -> Json:
        """One value as JSON."""
        scalar = SCALARS.get(type(value))
        return scalar(value) if scalar is not None else self._structure(value)

    def _structure(self, value: object) -> Json:
        write = STRUCTURES.get(type(value)) or _learn(type(value))
        return write(self, value)

    def attributes(self, state: Mapping[str, object], only: Container[str] | None = None) -> dict[str, Json]:
        """The named parts of one object, a level deeper.

        Args:
            only: names of those that are wanted; None for all.
        """
        if not state:
            return {}
        self._enter(ATTRIBUTE, state)
        written, path = {}, self._path
        for name, item in state.items():
            if only is not None and name not in only:
                continue
            if type(item) is str and item.isascii():  # as in `value`, for the many columns of entities
                written[name] = item
                continue
            path[-1] = name
            scalar = SCALARS.get(type(item))
            written[name] = scalar(item) if scalar is not None else self._structure(item)
        self._leave()
        return written

    def place(self) -> str:
        """Where the value is that is being written, such as `kwargs['items'][2].price`."""
        (position, name), text = self._origin, _steps(self._path)
        while position is not None:
            _, (position, name), path = self._found[position]
            text = _steps(path) + text
        return name + (text if len(text) <= 200 else f"{text[:90]}…{text[-90:]}")

    def _argument(self, name: str, value: object) -> Json:
        self._origin = (None, name)
        return self.value(value)

    def _rows(self) -> list[Json]:
        """A row for each entity that was met; writing one may find more of them."""
        rows: list[Json] = []
        self._levels = LEVELS + 1
        for position, (entity, _, _) in enumerate(self._found):
            self._origin = (position, "")
            shape: Any = shape_of(type(entity))
            rows.append(shape.key(self, entity) if self._reload else shape.snapshot(self, entity))
        return rows

    def _enter(self, style: str, value: object) -> None:
        if len(self._path) >= 2 * self._levels:
            why = f"it is nested more than {LEVELS} levels deep, or contains itself; pass a flatter value, or its id"
            raise Refused(type(value), why)
        self._path += (style, None)

    def _leave(self) -> None:
        del self._path[-2:]

    def _entity(self, entity: object) -> Json:
        position = self._positions.get(id(entity))
        if position is None:
            position = self._positions[id(entity)] = len(self._found)
            self._found.append((entity, self._origin, tuple(self._path)))
        return {"$entity": position}

    def _list(self, values: Iterable[object]) -> list[Json]:
        self._enter(MEMBER, values)
        written = []
        for index, item in enumerate(values):
            self._path[-1] = index
            written.append(self.value(item))
        self._leave()
        return written

    def _members(self, values: Iterable[object]) -> list[Json]:
        self._enter(MEMBER, values)
        written = []
        for member in values:
            self._path[-1] = member
            written.append(self.value(member))
        self._leave()
        return written

    def _dict(self, values: dict[object, object]) -> Json:
        if not all(map(_plain_key, values)):
            return {"$dict": self._pairs(values)}
        self._enter(MEMBER, values)
        written = {}
        for key, item in values.items():
            self._path[-1] = key
            written[key] = self.value(item)
        self._leave()
        return written

    def _pairs(self, values: dict[object, object]) -> list[Json]:
        self._enter(MEMBER, values)
        written = []
        for key, item in values.items():
            self._path[-1] = key
            written.append([self.value(key), self.value(item)])
        self._leave()
        return written


STRUCTURES: dict[type, Callable[[Writer, Any], Json]] = {
    list: Writer._list,
    tuple: lambda writer, values: {"$tuple": writer._list(values)},
    set: lambda writer, values: {"$set": writer._members(values)},
    frozenset: lambda writer, values: {"$frozenset": writer._members(values)},
    dict: Writer._dict,
}


def _learn(cls: type[object]) -> Callable[[Writer, Any], Json]:
    STRUCTURES[cls] = write = _writing(cls)
    return write


def _writing(cls: type[object]) -> Callable[[Writer, Any], Json]:
    builtin, shape = stood_in_for(cls), shape_of(cls)
    if builtin is not None:
        return STRUCTURES[builtin]
    if shape is None:
        raise Refused(cls, reason_against(cls))
    return Writer._entity if isinstance(shape, EntityShape) else shape.write


def _plain_key(key: object) -> bool:
    """Whether a dict key is a JSON name, and none that could be taken for a tag."""
    return type(key) is str and not key.startswith("$") and plain_text(key)


def _steps(path: Sequence[Any]) -> str:
    steps = zip(path[::2], path[1::2], strict=True)
    return "".join(f".{step}" if style == ATTRIBUTE else f"[{reprlib.repr(step)}]" for style, step in steps)
