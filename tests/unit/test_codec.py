"""The payload codec: values of every listed type arrive equal in type and value."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum, auto
from math import copysign, inf, isnan, nan
from typing import Any, Generic, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, ConfigDict, RootModel
from pydantic.dataclasses import dataclass as validated_dataclass

from nitro.infrastructure.events import ANY
from nitro.infrastructure.offload.codec import Payload, decode, encode

T = TypeVar("T")


class Color(Enum):
    RED = "r"
    CRIMSON = "r"  # noqa: PIE796  # an alias


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


class Access(Flag):
    READ = auto()
    WRITE = auto()


class Mode(IntFlag):
    FAST = 1
    LOUD = 2


@dataclass
class Point:
    x: int
    y: object = 0


@dataclass(frozen=True, slots=True)
class Cell:
    column: str
    row: int = field(default=7)


@validated_dataclass
class Checked:
    port: int


class Outer:
    @dataclass
    class Inner:
        value: int


class Names(RootModel[list[str]]):
    pass


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Box(BaseModel, Generic[T]):
    content: T


IntBox = Box[int]


def carried(value: object) -> Any:
    """Returns the decoded value of a sender."""
    return decode(encode(value, (), {})).sender


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -(2**63),
        2**63 - 1,
        2**63,
        -(2**200),
        1.5,
        1e300,
        5e-324,
        inf,
        -inf,
        "",
        "text",
        "ü €\x00\n",
        b"",
        b"\x00\xff",
        date(2024, 2, 29),
        datetime(2024, 2, 29, 1, 2, 3, 4),
        time(1, 2, 3, 4),
        timedelta(days=-1, microseconds=1),
        Decimal("-0.10"),
        Decimal("Infinity"),
        Decimal("1E+50"),
        UUID(int=5),
        Color.RED,
        Color.CRIMSON,
        Level.LOW,
        Word.YES,
        Access.READ,
        Access.READ | Access.WRITE,
        Access(0),
        Mode.FAST | Mode.LOUD,
        Mode(12),
        [],
        [1, [2]],
        {},
        {"a": {"b": 1}},
        (),
        (1, (2,)),
        set(),
        pytest.param({1, "a", (2, b"b")}, id="{1, 'a', (2, b'b')}"),
        frozenset({frozenset({1})}),
        Point(1, [Point(2)]),
        Cell("a"),
        Outer.Inner(3),
        Checked(port=80),
        Names(["a"]),
        IntBox(content=1),
        Open(name="a", size=Decimal(1)),
    ],
    ids=repr,
)
def test_value_arrives_equal_in_type_and_value(value: object) -> None:
    """Each listed type comes back as the same type and value."""
    arrived = carried(value)
    assert (type(arrived), arrived) == (type(value), value)


def test_arguments_keep_their_places() -> None:
    """Sender, positional and keyword arguments arrive where they were."""
    assert decode(encode("s", (1, (2,)), {"$k": 3})) == Payload(sender="s", args=(1, (2,)), kwargs={"$k": 3})


def test_text_is_ascii_and_strict_json() -> None:
    """The payload is ASCII and has none of Python's additions to JSON."""
    text = encode(None, ("é", nan, inf), {})
    assert text.isascii()
    json.loads(text, parse_constant=pytest.fail)


def test_not_a_number_arrives() -> None:
    """A float NaN and all kinds of Decimal NaN survive."""
    assert isnan(carried(nan))
    assert [str(carried(Decimal(text))) for text in ("NaN", "sNaN", "NaN12")] == ["NaN", "sNaN", "NaN12"]


def test_negative_zero_arrives() -> None:
    """The sign of a float zero survives."""
    assert copysign(1, carried(-0.0)) == -1


def test_huge_integer_passes_the_digit_limit() -> None:
    """An int with more digits than Python turns into decimal text survives."""
    value = -(7**20_000)
    assert carried(value) == value


@pytest.mark.parametrize("value", ["\ud800", "a\udfff", "\ud83d\ude00", {"\ud83d\ude00": 1}], ids=ascii)
def test_surrogates_arrive_as_they_were(value: object) -> None:
    """Surrogates survive, and two neighbours do not become one character."""
    assert carried(value) == value


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-9, minutes=-30)), timezone(timedelta(seconds=1))])
def test_offset_arrives(zone: timezone) -> None:
    """Aware datetimes and times keep their UTC offset."""
    moment = datetime(2024, 1, 1, 12, tzinfo=zone)
    arrived = carried([moment, moment.timetz()])
    assert arrived == [moment, moment.timetz()]
    assert [value.utcoffset() for value in arrived] == [zone.utcoffset(None)] * 2


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize(
    "moment",
    [datetime(2024, 7, 1), datetime(2024, 10, 27, 2, 30), datetime(2024, 3, 31, 2, 30)],
    ids=["once", "twice", "never"],
)
@pytest.mark.parametrize("key", ["Europe/Berlin", "UTC", "Etc/GMT+5"])
def test_zone_of_zoneinfo_arrives(key: str, moment: datetime, fold: int) -> None:
    """A datetime in a named zone arrives equal, with zone and offset, also in an hour that has two offsets."""
    sent = moment.replace(tzinfo=ZoneInfo(key), fold=fold)
    arrived = carried(sent)
    assert (arrived, arrived.fold, arrived.utcoffset()) == (sent, fold, sent.utcoffset())
    assert arrived.tzinfo is sent.tzinfo


def test_time_in_a_zone_of_zoneinfo_arrives() -> None:
    """A time without a date has no offset, and arrives by the key of its zone."""
    sent = time(1, 2, 3, 4, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    assert (carried(sent), carried(sent).tzinfo, carried(sent).fold) == (sent, sent.tzinfo, 1)


def test_zone_that_has_another_offset_here_becomes_its_offset() -> None:
    """The instant stays if the receiver has other rules for the zone or does not know it."""
    sent = datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    for key in ("Europe/London", "Atlantis/Capital"):
        arrived = decode(encode(sent, (), {}).replace("Europe/Berlin", key)).sender
        assert (arrived, arrived.utcoffset()) == (sent, timedelta(hours=2))


def test_fold_arrives() -> None:
    """The second of two equal local times stays the second."""
    assert [carried(value).fold for value in (datetime(2024, 1, 1, fold=1), time(1, fold=1))] == [1, 1]


@pytest.mark.parametrize(
    "key", [1, None, 1.5, (1, "a"), frozenset({1}), b"b", date(2024, 1, 1), Color.RED, Word.YES, Cell("a"), UUID(int=1)]
)
def test_dict_key_arrives(key: object) -> None:
    """Keys of any hashable listed type survive, in order."""
    arrived = carried({"first": 0, key: [1]})
    assert [(type(name), name) for name in arrived] == [(str, "first"), (type(key), key)]


@pytest.mark.parametrize("key", ["$tuple", "$", "$entity", "nitro"])
def test_dict_is_not_taken_for_a_tag(key: str) -> None:
    """A dict whose only key looks like the codec's own is still that dict."""
    assert carried({key: [1]}) == {key: [1]}


def test_any_is_the_same_object() -> None:
    """`ANY` arrives as the one symbol."""
    assert carried(ANY) is ANY


@pytest.mark.parametrize("microseconds", [1, -1, 1_500_000])
def test_an_offset_below_a_second_is_kept(microseconds: int) -> None:
    """An offset below a second survives, although Python's `fromisoformat` reads it as UTC."""
    moment = datetime(2000, 1, 1, tzinfo=timezone(timedelta(microseconds=microseconds)))
    payload = decode(encode(moment, (), {}), load=lambda cls, key: None)
    assert payload.sender.utcoffset() == timedelta(microseconds=microseconds)
