"""The payload codec: dataclasses, models and entities without a table are rebuilt, not constructed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from nitro.domain.entities.base_entity import Entity
from nitro.errors import PayloadUnreadable
from nitro.infrastructure.offload.codec import decode, encode

T = TypeVar("T")
HERE = __name__


@dataclass
class Point:
    x: int
    y: object = 0


@dataclass(frozen=True, slots=True)
class Cell:
    column: str
    row: int = field(default=7)


@dataclass
class Counted:
    """A dataclass that counts its constructions."""

    size: int
    double: int = field(init=False)
    unset: int = field(init=False)
    tags: list[str] = field(default_factory=lambda: ["new"])

    def __post_init__(self) -> None:
        Counted.runs = getattr(Counted, "runs", 0) + 1
        self.double = self.size * 2
        self.remark = f"made with {self.size}"

    @cached_property
    def stream(self) -> object:
        return object()


class Price(BaseModel):
    amount: Decimal = Field(alias="theAmount")
    currency: str = "EUR"
    note: object = None
    _seen: int = PrivateAttr(default=0)

    @field_validator("amount")
    @classmethod
    def _double(cls, amount: Decimal) -> Decimal:
        return amount * 2

    @cached_property
    def stream(self) -> object:
        return object()


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Box(BaseModel, Generic[T]):
    content: T


class Draft(Entity):
    """An entity without a table."""

    title: str = ""
    other: object = None


WRAPPERS: list[Any] = [
    lambda value: [value],
    lambda value: (value,),
    lambda value: {"a": value},
    lambda value: {1: value},
    lambda value: Point(0, value),
    lambda value: Box(content=value),
]


def carried(value: object) -> Any:
    """Returns the decoded value of a sender."""
    return decode(encode(value, (), {})).sender


def forged(sender: object, **parts: object) -> str:
    """Returns a payload that was not made by `encode`."""
    return json.dumps({"nitro": 1, "sender": sender, "args": [], "kwargs": {}, "entities": []} | parts)


def test_dataclass_is_not_constructed_again() -> None:
    """`__post_init__` does not run again; fields without init, unset ones and further attributes survive."""
    value = Counted(2)
    value.double, value.tags, runs = 5, [], Counted.runs
    arrived = carried(value)
    assert vars(arrived) == {"size": 2, "double": 5, "tags": [], "remark": "made with 2"}
    assert Counted.runs == runs


def test_cached_property_stays_behind() -> None:
    """A cached property with an unlisted value is left out and computed again."""
    counted, price = Counted(1), Price(theAmount=1)
    assert counted.stream is not price.stream
    assert carried(counted).double == 2
    assert carried(price).model_dump() == price.model_dump()


def test_field_added_later_takes_its_default() -> None:
    """An older payload lacks a new field; dataclasses and models fill in its default."""
    cell = forged({"$dataclass": [f"{HERE}:Cell", {"column": "b"}]})
    counted = forged({"$dataclass": [f"{HERE}:Counted", {"size": 1}]})
    price = forged({"$model": {"class": f"{HERE}:Price", "fields": {"amount": 1}, "set": []}})
    assert decode(cell).sender == Cell("b", 7)
    assert decode(counted).sender.tags == ["new"]
    assert decode(price).sender.currency == "EUR"


def test_field_removed_since_is_ignored() -> None:
    """A newer class with slots has no room for a field of an older payload."""
    assert decode(forged({"$dataclass": [f"{HERE}:Cell", {"column": "b", "gone": 1}]})).sender == Cell("b")


def test_required_field_added_later_is_unreadable() -> None:
    """A field without default that the payload lacks is an error that names it."""
    with pytest.raises(PayloadUnreadable, match=r"without its field x"):
        decode(forged({"$dataclass": [f"{HERE}:Point", {}]}))


def test_model_arrives_with_all_its_state() -> None:
    """Aliases and validators stay out of it; which fields were set and private attributes survive."""
    price = Price(theAmount=Decimal(2), note=(1, {2}))
    price._seen = 9
    arrived = carried(price)
    assert arrived == price
    assert (arrived.amount, arrived.note, arrived._seen) == (Decimal(4), (1, {2}), 9)
    assert arrived.model_fields_set == {"amount", "note"}


def test_extra_of_a_model_arrives() -> None:
    """Values beyond the fields of a model with `extra="allow"` survive."""
    assert carried(Open(name="a", size={1})).__pydantic_extra__ == {"size": {1}}


def test_standalone_entity_arrives() -> None:
    """An entity without a table survives with its values and the set of fields given."""
    arrived = carried(Draft(id="d1", title="t", other=(1,)))
    assert (type(arrived), arrived.id, arrived.title, arrived.other) == (Draft, "d1", "t", (1,))
    assert arrived.model_fields_set == {"id", "title", "other"}


def test_standalone_entities_keep_their_cycles() -> None:
    """Entities without a table that refer to each other do so again, through containers as well."""
    first, second = Draft(id="d1"), Draft(id="d2")
    first.other, second.other = Point(1, {second: [second]}), first
    arrived = carried(first)
    (key, (value,)) = next(iter(arrived.other.y.items()))
    assert key is value
    assert key.other is arrived


def test_equal_entities_stay_two_objects() -> None:
    """Entities that are equal but not the same object arrive as two, one that appears twice as one."""
    first, second = Draft(id="d"), Draft(id="d")
    one, two, three = carried([first, second, first])
    assert one is three
    assert one is not two


def test_hundred_levels_arrive() -> None:
    """Every kind of nesting may be a hundred levels deep."""
    value: Any = "end"
    for level in range(100):
        value = WRAPPERS[level % len(WRAPPERS)](value)
    assert carried(value) == value


def test_entity_is_no_level() -> None:
    """The value of an entity's field may have a hundred levels of its own."""
    value: Any = "end"
    for _ in range(100):
        value = [value]
    assert carried(Draft(id="d", other=value)).other == value


def test_chain_of_entities_has_no_limit() -> None:
    """Entities may refer to each other over more links than a stack is deep."""
    first = last = Draft(id="0")
    for number in range(1, 3000):
        last.other = last = Draft(id=str(number))
    arrived, length = carried(first), 1
    while arrived.other is not None:
        arrived, length = arrived.other, length + 1
    assert (length, arrived.id) == (3000, "2999")
