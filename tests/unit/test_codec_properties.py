"""The payload codec: nested values of any types arrive equal in type and value at every level."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, auto
from typing import Any, Generic, TypeVar
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from nitro.errors import PayloadUnreadable
from nitro.infrastructure.offload.codec import decode, encode
from nitro.infrastructure.offload.codec.reader import TAG_READERS
from nitro.infrastructure.offload.codec.scalars import SCALAR_READERS

T = TypeVar("T")


class Suit(Enum):
    HEART = 1
    SPADE = "s"


class Right(Flag):
    READ = auto()
    WRITE = auto()
    RUN = auto()


@dataclass(frozen=True, slots=True)
class Node:
    left: object
    right: object = None


class Sheet(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    cells: object = None


@dataclass
class Cell(Generic[T]):
    value: T


class Box(BaseModel, Generic[T]):
    content: T


def parameters() -> st.SearchStrategy[Any]:
    """Types that may stand in the brackets of a parametrised class."""
    plain = st.sampled_from([int, str, Suit, Node, Sheet, datetime, None, Any])
    return st.recursive(
        plain, lambda inner: inner.map(lambda one: list[one]) | inner.map(lambda one: Box[one]), max_leaves=3
    )


def same(one: Any, other: Any) -> bool:
    """Returns whether two values are equal in type and value at every level; NaN equals NaN, -0.0 only itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float | Decimal):
        return repr(one) == repr(other)
    if isinstance(one, datetime | time):
        return one == other and (one.isoformat(), one.fold) == (other.isoformat(), other.fold)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and all(any(same(a, b) for b in other) for a in one)
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, BaseModel):
        return same(one.__getstate__(), other.__getstate__())
    return bool(one == other)


def zones() -> st.SearchStrategy[tzinfo | None]:
    """Generates time zones: none, any fixed offset to the microsecond, or a named zone."""
    day = timedelta(days=1)
    offsets = st.timedeltas(-day + timedelta.resolution, day - timedelta.resolution).map(timezone)
    return st.none() | offsets | st.timezones()


def moments() -> st.SearchStrategy[datetime]:
    """Datetimes, also of hours that a zone has twice or never."""
    switches = st.sampled_from([datetime(2024, 10, 27, 2, 30), datetime(2024, 3, 31, 2, 30), datetime(2024, 11, 3, 1)])
    named = st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]).map(ZoneInfo)
    return st.datetimes(timezones=zones()) | st.builds(datetime.replace, switches, tzinfo=named, fold=st.integers(0, 1))


HASHABLE_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.text(st.characters(categories=["Cs"]), max_size=3)
    | st.sampled_from(["$tuple", "$", "$x", ""])
    | st.binary(max_size=8)
    | moments()
    | st.dates()
    | st.times(timezones=zones())
    | st.timedeltas()
    | st.decimals().filter(lambda number: not number.is_snan())
    | st.uuids()
    | st.sampled_from(Suit)
    | st.integers(0, 7).map(Right)
)

KEYS = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3) | st.builds(Node, inner, inner)
    ),
    max_leaves=5,
)

VALUES = st.recursive(
    KEYS | st.just(Decimal("sNaN1")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(KEYS, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.builds(Node, inner, inner)
        | st.builds(Sheet, cells=inner, more=inner)
        | st.builds(lambda cls, content: Box[cls].model_construct(content=content), parameters(), inner)
        | st.builds(lambda cls, content: Cell[cls](content), parameters(), inner)
    ),
    max_leaves=12,
)

FORGED = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*SCALAR_READERS, *TAG_READERS, "$nothing", "class"]), inner, max_size=2)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(value=VALUES)
def test_any_nesting_arrives(value: object) -> None:
    """Sender, argument and keyword argument come back the same, from ASCII text."""
    text = encode(value, (value,), {"value": value})
    payload = decode(text)
    assert text.isascii()
    assert same((payload.sender, *payload.args, payload.kwargs["value"]), (value, value, value))


@settings(deadline=None)
@given(value=VALUES)
def test_second_journey_changes_nothing(value: object) -> None:
    """A decoded value can be encoded again, as a handler does when it emits the value."""
    once = decode(encode(value, (), {})).sender
    assert same(decode(encode(once, (), {})).sender, value)


@settings(deadline=None)
@given(sender=FORGED)
def test_forged_json_decodes_or_is_unreadable(sender: object) -> None:
    """Arbitrary JSON with the codec's tags raises nothing but PayloadUnreadable."""
    text = json.dumps({"nitro": 1, "sender": sender, "args": [], "kwargs": {}, "entities": []})
    with suppress(PayloadUnreadable):
        decode(text)
