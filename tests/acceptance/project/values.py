"""Values of every type that a payload carries, and handlers that report values which did not arrive equal.

Postponed annotations are left out, because SQLModel cannot resolve them in a relationship.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlmodel import Field, Relationship

from nitro import Entity, Offload, on
from project.effects import note

EAST = timezone(timedelta(hours=2))


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: int
    y: float


class Address(BaseModel):
    street: str
    tags: set[str]


class Order(Entity, table=True):
    total: float = 0.0
    items: list["Item"] = Relationship(back_populates="order")


class Item(Entity, table=True):
    product: str
    quantity: int = 1
    order_id: str | None = Field(default=None, foreign_key="order.id")
    order: Order | None = Relationship(back_populates="items")


class Quote(Entity):
    """An entity without a table."""

    price: Decimal


def everything() -> dict[str, Any]:
    """Returns a value of each type, some of them nested."""
    return {
        "none": None,
        "bool": True,
        "int": 2**70,
        "float": 0.1,
        "str": "ä \x00 \U0001f600",
        "list": [1, [2.0, None]],
        "dict": {"a": 1},
        "dict_keys": {(1, "a"): 1, UUID(int=5): 2, 3: 3, date(2020, 2, 29): 4, Colour.RED: 5},
        "tuple": (1, ("a", [2])),
        "set": {1, "a"},
        "frozenset": frozenset({(1, 2)}),
        "bytes": b"\x00\xff",
        "datetime": datetime(2026, 1, 2, 3, 4, 5, 6),
        "datetime_offset": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=EAST),
        "datetime_utc": datetime(2026, 1, 2, tzinfo=UTC),
        "date": date(2026, 1, 2),
        "time": time(3, 4, 5, 6),
        "time_offset": time(3, 4, tzinfo=EAST),
        "timedelta": timedelta(days=-1, microseconds=7),
        "decimal": Decimal("1.10"),
        "uuid": UUID(int=7),
        "enum": Colour.RED,
        "dataclass": Point(1, 2.5),
        "pydantic": Address(street="High", tags={"home"}),
        "entity": Order(id="o1", total=4.5, items=[Item(id="i1", product="tea", quantity=2, order_id="o1")]),
        "entity_without_table": Quote(id="q1", price=Decimal("9.90")),
        "nested": {"points": [(Point(3, 4.0), {Colour.RED})]},
    }


def differ(one: Any, other: Any) -> bool:
    """Whether two values, or what they contain, differ in type or value."""
    if type(one) is not type(other):
        return True
    if isinstance(one, dict):
        return differ(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        return differ(sorted(one, key=repr), sorted(other, key=repr))
    if isinstance(one, list | tuple):
        return len(one) != len(other) or any(differ(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, datetime | time):
        return repr(one) != repr(other)
    if isinstance(one, Order):
        return bool(one != other) or differ([*one.items], [*other.items])
    return bool(one != other)


@on("everything", offload=True)
def compare(sender: Order, *args: Any, key: str, **kwargs: Any) -> None:
    sent = everything()
    differing = [name for name in sent if name not in kwargs or differ(sent[name], kwargs[name])]
    note(
        key,
        differing=differing,
        sender=not differ(sent["entity"], sender),
        args=not differ(list(sent.values()), list(args)),
    )


@on("lazy", offload=True)
def lazy(sender: Order, key: str) -> None:
    note(key, products=[item.product for item in sender.items])


@on("changed", offload=True)
def snapshot(sender: Order, key: str) -> None:
    note(key, total=sender.total)


@on("changed", offload=Offload(entity="reload"))
def reloaded(sender: Order, key: str) -> None:
    note(key, total=sender.total)


@on("vanished", offload=Offload(entity="reload", max_retries=0))
def fails(sender: Order, key: str) -> None:
    note(key)


@on("vanished", offload=Offload(entity="reload", on_missing="skip"))
def skips(sender: Order, key: str) -> None:
    note(key)
