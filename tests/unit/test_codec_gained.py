"""The payload codec: fields that a class has gained or lost since a payload was written."""

from __future__ import annotations

import json
from dataclasses import InitVar, dataclass, field
from enum import Enum, Flag, auto
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel
from pydantic.dataclasses import dataclass as checked_dataclass
from sqlalchemy import JSON, inspect
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, make_transient_to_detached, mapped_column
from sqlmodel import Field as Column

from nitro.domain.entities.base_entity import Entity
from nitro.errors import NotLoaded, PayloadUnreadable
from nitro.infrastructure.offload.codec import decode, encode


class Colour(Enum):
    RED = "r"


class Access(Flag):
    READ = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slotted:
    a: int
    b: list[str] = field(default_factory=list)


@dataclass
class Started:
    a: int
    seed: InitVar[int] = 0
    made: int = field(init=False, default=5)
    label: str = "x"

    def __post_init__(self, seed: int) -> None:
        self.made = seed

    def shout(self) -> str:
        return "!"

    @property
    def twice(self) -> int:
        return self.a * 2


@checked_dataclass
class Checked:
    a: int
    b: int = Field(default=3)
    c: list[int] = Field(default_factory=lambda: [1])
    d: int = Field(default_factory=lambda given: given["a"] + given["b"])


@checked_dataclass
class CheckedStrictly:
    a: int
    b: int = Field(gt=1)


class Model(BaseModel):
    model_config = ConfigDict(frozen=True)
    a: int
    b: int = Field(default=2, alias="theB")
    c: list[int] = Field(default_factory=list)
    d: int = Field(default_factory=lambda given: given["a"] + given["b"])
    _seen: int = PrivateAttr(default=7)
    _notes: list[str] = PrivateAttr(default_factory=list)
    _late: str = PrivateAttr()


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Names(RootModel[list[str]]):
    _seen: int = PrivateAttr(default=7)


class Draft(Entity):
    title: str
    size: int = 4
    _seen: int = PrivateAttr(default=7)


class GainedOrder(Entity, table=True):
    email: str
    total: float = 1.5
    tags: str = Column(default_factory=lambda: "new")
    note: str | None = None
    _seen: int = PrivateAttr(default=7)


class Base(DeclarativeBase): ...


class GainedRow(Base):
    __tablename__ = "codec_gained_row"
    id: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(default=4)
    label: Mapped[str]
    tags: Mapped[dict[str, str]] = mapped_column(MutableDict.as_mutable(JSON), default=dict)
    code: Mapped[str] = mapped_column(default=lambda: "new")
    rank: Mapped[int] = mapped_column(default=lambda context: context.current_parameters["size"])


class MappedDataclass(MappedAsDataclass, DeclarativeBase): ...


class GainedDataclass(MappedDataclass):
    __tablename__ = "codec_gained_dataclass"
    id: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(default=4)
    tags: Mapped[list[str]] = mapped_column(JSON, default_factory=lambda: ["new"])
    made: Mapped[str] = mapped_column(init=False, default="here")


def without(value: object, *names: str) -> Any:
    """Returns the decoded value of a sender in whose payload these fields are missing."""
    return decode(json.dumps(_stripped(json.loads(encode(value, (), {})), names))).sender


def _stripped(data: Any, names: tuple[str, ...]) -> Any:
    if isinstance(data, list):
        return [_stripped(item, names) for item in data if item not in names]
    if isinstance(data, dict):
        return {name: _stripped(item, names) for name, item in data.items() if name not in names}
    return data


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (Slotted(a=1), ["b"]),
        (Started(1, 5), ["made", "label"]),
        (Checked(1), ["b", "c", "d"]),
        (Model(a=1), ["b", "c", "d"]),
        (Model(a=1), ["private"]),
        (Model(a=1), ["_seen", "_notes"]),
        (Names(["a"]), ["private"]),
    ],
    ids=str,
)
def test_default_is_taken(value: object, names: list[str]) -> None:
    """A field or private attribute that the payload lacks gets its default, as on a new instance."""
    arrived = without(value, *names)
    assert arrived == value
    assert repr(arrived) == repr(value)


def test_default_is_not_shared() -> None:
    """Each decoded value gets a default of its own."""
    one, two = without(Model(a=1), "c", "private"), without(Model(a=1), "c", "private")
    assert one.c is not two.c
    assert one._notes is not two._notes


def test_private_attribute_without_a_default_stays_unset() -> None:
    """The attribute raises AttributeError, as on a new model."""
    with pytest.raises(AttributeError, match="_late"):
        _ = without(Model(a=1), "private")._late


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Slotted(a=1), "a"),
        (Started(1), "a"),
        (CheckedStrictly(1, 2), "b"),
        (Model(a=1), "a"),
        (Open(a=1), "a"),
        (Draft(title="t"), "title"),
        (GainedOrder(email="a@b"), "email"),
        (GainedRow(id=1, size=2, label="x"), "label"),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_required_field_is_unreadable(value: object, name: str) -> None:
    """A field without default that the payload lacks is an error that names class and field."""
    with pytest.raises(PayloadUnreadable, match=rf"{type(value).__name__} arrived without its field {name}"):
        without(value, name)


def test_required_field_that_the_sender_had_not_set_stays_unset() -> None:
    """A field that `model_construct` or a table's constructor left out stays unset."""
    assert "a" not in vars(decode(encode(Open.model_construct(), (), {})).sender)
    assert decode(encode(GainedOrder(id="o"), (), {})).sender.email is None


def test_entity_without_a_table_takes_defaults() -> None:
    """Fields and private attributes of an entity without a table get their defaults."""
    arrived = without(Draft(id="d", title="t"), "size", "private")
    assert (arrived.size, arrived._seen) == (4, 7)


def test_new_entity_takes_the_defaults_of_its_columns() -> None:
    """An entity that is not stored has what its constructor would have put there."""
    arrived = without(GainedOrder(id="o", email="a@b"), "total", "tags", "note", "private")
    assert (arrived.total, arrived.tags, arrived.note, arrived._seen) == (1.5, "new", None, 7)
    assert inspect(arrived).transient


def test_new_declarative_instance_takes_the_default_of_its_column() -> None:
    """A value or a function without parameters is taken; a function of the INSERT's context runs there."""
    value = GainedRow(id=1, size=9, label="x", tags={"a": "b"}, code="old", rank=3)
    arrived = without(value, "size", "tags", "code", "rank")
    assert (arrived.size, arrived.tags, arrived.code, arrived.rank) == (4, {}, "new", None)
    arrived.tags["c"] = "d"
    assert inspect(arrived).attrs.tags.history.has_changes()


def test_new_mapped_dataclass_takes_the_defaults_of_its_fields() -> None:
    """Defaults of the dataclass are preferred to defaults of the columns."""
    arrived = without(GainedDataclass(id=1, size=9, tags=["a"]), "size", "tags", "made")
    assert (arrived.size, arrived.tags, arrived.made) == (4, ["new"], "here")


def stored() -> GainedOrder:
    """Returns an order as a session leaves it, detached."""
    order = GainedOrder(id="o", email="a@b", total=9.0)
    make_transient_to_detached(order)
    return order


def test_stored_entity_takes_the_defaults_of_its_columns() -> None:
    """The defaults do not count as changes of the entity."""
    arrived = without(stored(), "total", "note")
    assert (arrived.total, arrived.note) == (1.5, None)
    assert not inspect(arrived).modified


def test_new_required_column_of_a_stored_entity_is_not_read_later() -> None:
    """A handler that reads the column gets an error with class and column; others do not."""
    arrived = without(stored(), "email")
    assert arrived.total == 9.0
    with pytest.raises(NotLoaded, match="GainedOrder arrived without email"):
        _ = arrived.email


def test_payload_that_does_not_tell_what_was_absent_gives_no_default() -> None:
    """A column missing in a payload of the first version may have been deferred, so it gets no default."""
    arrived = without(stored(), "total", "absent")
    with pytest.raises(NotLoaded, match="total"):
        _ = arrived.total


def test_model_that_takes_extra_since_can_be_given_some() -> None:
    """An extra attribute can be set on what arrived."""
    text = encode(Open(a=1), (), {}).replace(',"extra":{}', "")
    arrived = decode(text).sender
    arrived.more = 1
    assert arrived.model_extra == {"more": 1}


def test_extra_attribute_that_has_become_a_field_keeps_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value moves from the extra attributes to the field, and counts as set."""
    text = encode(Open.model_validate({"a": 1, "b": 9, "c": 3}), (), {})

    class Closer(Open):
        b: int = 2

    monkeypatch.setattr(f"{__name__}.Open", Closer)
    arrived = decode(text).sender
    assert (arrived.b, arrived.model_extra, arrived.model_fields_set) == (9, {"c": 3}, {"a", "b", "c"})


def test_lost_field_does_not_count_as_set() -> None:
    """The payload's set of fields is reduced to fields that the model still has."""
    text = encode(Model(a=1), (), {}).replace('"set":["a"]', '"set":["a","gone"]')
    assert decode(text).sender.model_fields_set == {"a"}


def test_lost_fields_and_private_attributes_are_left_out() -> None:
    """A model without the lost fields equals a new one."""
    text = encode(Model(a=1), (), {}).replace('"_seen":7', '"_seen":7,"_gone":1').replace('"a":1', '"a":1,"gone":1')
    assert decode(text).sender == Model(a=1)


def test_lost_field_does_not_hide_a_method() -> None:
    """An attribute of the payload never takes the place of code."""
    text = encode(Started(1), (), {}).replace('"a":1', '"a":1,"shout":1,"twice":9,"other":2')
    arrived = decode(text).sender
    assert (arrived.shout(), arrived.twice, arrived.other) == ("!", 2, 2)


@pytest.mark.parametrize(
    ("value", "old", "new", "said"),
    [
        (Colour.RED, '"RED"', '"BLUE"', "Colour has no member 'BLUE' any more"),
        (Access(0), ",0]", ",8]", "Access has no combination 8 any more"),
    ],
    ids=str,
)
def test_member_that_is_gone_says_so(value: object, old: str, new: str, said: str) -> None:
    """The error names Enum and member."""
    with pytest.raises(PayloadUnreadable, match=said):
        decode(encode(value, (), {}).replace(old, new))
