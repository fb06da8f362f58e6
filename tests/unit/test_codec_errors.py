"""The payload codec: refused values, the path to the value and the remedy in the error."""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, ConfigDict

from nitro.domain.entities.base_entity import Entity
from nitro.errors import PayloadError
from nitro.infrastructure.events import ANY
from nitro.infrastructure.offload.codec import decode, encode

T = TypeVar("T")
HERE = __name__


class Station(tzinfo):
    """A zone without a key, an hour back since the end of a summer."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        if moment is None:
            return None
        summer = moment.replace(tzinfo=None) < datetime(2024, 10, 27, 2 if moment.fold else 3)
        return timedelta(hours=2 if summer else 1)

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None


@dataclass
class Point:
    x: int
    y: object = 0


@dataclass
class DictRecord(dict):
    label: str = ""


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Box(BaseModel, Generic[T]):
    content: T


class Draft(Entity):
    """An entity without a table."""

    title: str = ""
    other: object = None


class Text(str):
    __slots__ = ()


Pair = namedtuple("Pair", "left right")

WRAPPERS: list[Any] = [
    lambda value: [value],
    lambda value: (value,),
    lambda value: {"a": value},
    lambda value: {1: value},
    lambda value: Point(0, value),
    lambda value: Box(content=value),
]


def refusal(value: object, **options: Any) -> PayloadError:
    """Returns the error that sending a value as `kwargs['value']` raises."""
    with pytest.raises(PayloadError) as caught:
        encode(None, (), {"value": value}, **options)
    return caught.value


def test_time_without_an_offset_is_refused() -> None:
    """A time in a zone that has no offset without a date, and no key, is an error instead of losing its zone."""
    assert "has no offset" in refusal(time(1, tzinfo=Station())).why


@pytest.mark.parametrize("fold", [0, 1])
def test_hour_with_two_offsets_is_refused(fold: int) -> None:
    """A datetime in an hour with two offsets, in a zone without a key, is an error."""
    assert "zone of zoneinfo" in refusal(datetime(2024, 10, 27, 2, 30, tzinfo=Station(), fold=fold)).why


def test_another_symbol_is_refused() -> None:
    """A symbol that is not `ANY` means nothing to a worker."""
    assert "only ANY travels" in refusal(type(ANY)("codec-other")).why


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_hundred_and_one_levels_are_refused(wrap: Any) -> None:
    """The 101st level is an error that mentions both possible reasons."""
    value: Any = None
    for _ in range(101):
        value = wrap(value)
    assert "nested more than 100 levels deep, or contains itself" in refusal(value).why


def test_container_in_itself_is_refused() -> None:
    """A cyclic container is an error."""
    cycle: list[object] = []
    cycle.append(cycle)
    assert "contains itself" in refusal(cycle).why


@pytest.mark.parametrize(
    ("value", "kind", "way_out"),
    [
        (Text("a"), "Text", "plain str"),
        (Pair(1, 2), "Pair", "plain tuple"),
        (defaultdict(int), "defaultdict", "plain dict"),
        (OrderedDict(), "OrderedDict", "plain dict"),
        (DictRecord(), "DictRecord", "plain dict"),
        (Path("a"), "PosixPath", "its text"),
        (1j, "complex", "only None"),
        (bytearray(), "bytearray", "only None"),
        (Point, "type", "only None"),
        (object(), "object", "only None"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_other_types_are_refused_with_a_way_out(value: object, kind: str, way_out: str) -> None:
    """An unlisted type, or a subclass of a listed type, is an error that says what to pass."""
    error = refusal(value)
    assert (error.argument, error.kind) == ("kwargs['value']", kind)
    assert way_out in error.why


@pytest.mark.parametrize(
    ("sender", "args", "kwargs", "argument"),
    [
        (object(), (), {}, "sender"),
        (None, (object(),), {}, "args[0]"),
        (None, (), {"items": [0, 1, Point(object())]}, "kwargs['items'][2].x"),
        (None, (), {"a": {"b": (object(),)}}, "kwargs['a']['b'][0]"),
        (None, (), {"a": [Draft(id="1"), Draft(id="2", other=[object()])]}, "kwargs['a'][1].other[0]"),
        (Draft(id="1", other=Draft(id="2", other={"k": object()})), (), {}, "sender.other.other['k']"),
        (Open(name="a", size=object()), (), {}, "sender.size"),
    ],
)
def test_error_says_where(sender: object, args: tuple[object, ...], kwargs: dict[str, object], argument: str) -> None:
    """The error names a refused value by its path from the argument."""
    with pytest.raises(PayloadError) as caught:
        encode(sender, args, kwargs)
    assert (caught.value.argument, caught.value.kind) == (argument, "object")


def test_error_shortens_a_long_path() -> None:
    """The path to a deeply nested value is shortened."""
    entity = Draft(id="0", other=object())
    for number in range(1, 500):
        entity = Draft(id=str(number), other=entity)
    with pytest.raises(PayloadError) as caught:
        encode(entity, (), {})
    assert caught.value.argument.startswith("sender.other.other")
    assert len(caught.value.argument) < 250


def test_class_inside_a_function_is_refused() -> None:
    """A class that no worker can find by name is an error that says what to do."""

    @dataclass
    class Local:
        x: int = 0

    class Shade(Enum):
        DARK = 1

    assert "define it at module level" in refusal(Local()).why
    assert "define it at module level" in refusal(Shade.DARK).why


def test_class_hidden_by_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class whose name now means another class is an error."""
    hidden = dataclasses.make_dataclass("Hidden", ["x"], namespace={"__module__": HERE})
    monkeypatch.setattr(sys.modules[HERE], "Hidden", Point, raising=False)
    assert "define it at module level" in refusal(hidden(1)).why


def test_class_of_a_script_is_found_by_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of `__main__` is sent under the importable name, and the script itself finds it again."""
    script = ModuleType("__main__")
    script.__spec__ = type("Spec", (), {"name": "shop.script"})()
    script.Row = dataclasses.make_dataclass("Row", ["x"])
    script.Row.__module__ = "__main__"
    monkeypatch.setitem(sys.modules, "__main__", script)
    text = encode(script.Row(1), (), {})
    assert "shop.script:Row" in text
    assert decode(text).sender == script.Row(1)
