"""The finder of mapped instances: any mapped class, in any container."""

from __future__ import annotations

from collections import OrderedDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr, RootModel
from sqlalchemy import Column, Engine, ForeignKey, Integer, MetaData, Table, create_engine, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    registry,
    relationship,
)
from sqlmodel import Field, SQLModel

from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.database.mapped_instances import attached_states, mapped_states

IMPERATIVE = registry()


class Base(DeclarativeBase):
    """The declarative base of the tests."""


class Node(Base):
    """A row that belongs to another row."""

    __tablename__ = "mapped_node"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("mapped_node.id"))
    parent: Mapped[Node | None] = relationship(remote_side="Node.id", back_populates="children")
    children: Mapped[list[Node]] = relationship(back_populates="parent", cascade="")


class Leaf(Node):
    """A mapped class of joined-table inheritance."""

    __tablename__ = "mapped_leaf"

    id: Mapped[int] = mapped_column(ForeignKey("mapped_node.id"), primary_key=True)


class Pair(MappedAsDataclass, Base):
    """A mapped dataclass with a key of two parts."""

    __tablename__ = "mapped_pair"

    left: Mapped[int] = mapped_column(primary_key=True)
    right: Mapped[int] = mapped_column(primary_key=True)


class Plain(SQLModel, table=True):
    """A table of SQLModel."""

    __tablename__ = "mapped_plain"

    id: int | None = Field(default=None, primary_key=True)
    _note: Any = PrivateAttr(default=None)


class Known(Entity, table=True):
    """An entity."""

    __tablename__ = "mapped_known"


class Classical:
    """A class that is mapped imperatively."""

    def __init__(self, note: object = None) -> None:
        self.note = note


IMPERATIVE.map_imperatively(
    Classical, Table("mapped_classical", IMPERATIVE.metadata, Column("id", Integer, primary_key=True))
)


@dataclass
class Box:
    """A dataclass."""

    content: Any
    size: int = 0


@dataclass(frozen=True, slots=True)
class Slotted:
    """A dataclass without a dict."""

    content: Any = field(default=None)


class Model(BaseModel):
    """A pydantic model."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow")

    content: Any = None
    _hidden: Any = PrivateAttr(default=None)


class Colour(Enum):
    """An Enum; its members hold no mapped instance."""

    RED = 1


Named = namedtuple("Named", "content other")


def hidden(content: object) -> Model:
    """Returns a model that holds the instance in a private attribute."""
    model = Model()
    model._hidden = content
    return model


def noted(content: object) -> Plain:
    """Returns an SQLModel table instance that holds the instance in a private attribute."""
    plain = Plain()
    plain._note = content
    return plain


def cyclic(content: object) -> list[Any]:
    """Returns a list that holds itself."""
    around: list[Any] = []
    around += [around, {"back": around}, content]
    return around


def deep(content: object) -> Any:
    """Returns a list that is nested deeper than Python's recursion limit."""
    for _ in range(5000):
        content = [content]
    return content


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda value: value,
    "list": lambda value: [1, value],
    "tuple": lambda value: ("a", (value,)),
    "set": lambda value: {value},
    "frozenset": lambda value: frozenset([value, 3]),
    "deque": lambda value: deque([value]),
    "dict value": lambda value: {"a": {"b": value}},
    "dict key": lambda value: {value: 1},
    "dict view": lambda value: {"a": value}.values(),
    "ordered dict": lambda value: OrderedDict(a=value),
    "default dict": lambda value: defaultdict(list, a=[value]),
    "read-only dict": lambda value: MappingProxyType({"a": value}),
    "named tuple": lambda value: Named(1, value),
    "dataclass": Box,
    "slotted dataclass": Slotted,
    "pydantic model": lambda value: Model(content=[value]),
    "extra of a model": lambda value: Model(more=value),
    "private of a model": hidden,
    "root model": lambda value: RootModel[Any](value),
    "transient instance": lambda value: Classical(note=value),
    "private of a table": noted,
    "cycle": cyclic,
    "depth": deep,
    "mixture": lambda value: {"a": [Box(content=(Model(content={"b": Slotted(value)}),))]},
}
CLASSES: dict[str, Callable[[], Any]] = {
    "declarative": lambda: Node(id=1),
    "inheritance": lambda: Leaf(id=2),
    "dataclass": lambda: Pair(left=1, right=2),
    "SQLModel": lambda: Plain(id=1),
    "Entity": lambda: Known(id="k"),
    "imperative": Classical,
}


@pytest.fixture
def session() -> Iterator[Session]:
    """An open session."""
    with Session() as session:
        yield session


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_instance_is_found_wherever_it_is_held(session: Session, holder: str) -> None:
    """An instance is found at any depth, also in a container that contains itself."""
    session.add(one := Node(id=1))
    (states,) = attached_states([HOLDERS[holder](one)]).values()
    assert [state.obj() for state in states] == [one]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_instance_of_any_mapped_class_is_found(session: Session, kind: str) -> None:
    """An instance is found with any way of mapping its class."""
    session.add(one := CLASSES[kind]())
    assert list(attached_states(["a", {"b": [one]}])) == [session]


@pytest.mark.parametrize("attribute", ["parent", "children"])
def test_an_instance_that_is_not_attached_may_hold_one_that_is(session: Session, attribute: str) -> None:
    """The loaded relationships of a detached instance are searched."""
    session.add(one := Node(id=1))
    with session.no_autoflush:
        other = Node(id=2)
        other.__dict__[attribute] = [one] if attribute == "children" else one
    assert list(attached_states([other])) == [session]


def test_rows_of_a_result_are_looked_into(tmp_path: Any) -> None:
    """Rows and row mappings of a SELECT are searched for instances."""
    engine: Engine = create_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Node(id=1))
        session.commit()
        result = session.execute(select(Node, Node.id))
        row = result.one()
        assert list(attached_states([[row]])) == [session]
        assert list(attached_states([row._mapping])) == [session]
    engine.dispose()


def test_sessions_come_in_the_order_of_the_arguments() -> None:
    """The session of the least nested instance comes first; at the same depth the sender's."""
    with Session() as first, Session() as second:
        first.add(sender := Node(id=1))
        second.add(argument := Node(id=2))
        assert list(attached_states([[[sender]], argument])) == [second, first]
        assert list(attached_states([sender, argument])) == [first, second]


@pytest.mark.parametrize("value", [None, "a", 1, Colour.RED, Node, Plain, object(), UserList(), b"x", range(3), Model])
def test_what_holds_no_instance_has_none(value: object) -> None:
    """Classes, members of an Enum and unknown containers have no instance."""
    assert list(mapped_states([value, [value], {"a": value}])) == []


def test_an_instance_made_without_a_constructor_is_no_obstacle() -> None:
    """An instance without a state is in no session."""
    assert list(mapped_states([Node.__new__(Node)])) == []


def test_a_class_with_a_getattr_of_its_own_is_no_obstacle(session: Session) -> None:
    """The search reads no attribute that the class does not have."""

    class Strict(Node):
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name) if name.startswith("_sa_") else KeyError(name)

    session.add(one := Strict(id=3))
    assert list(attached_states([one])) == [session]


def test_a_class_may_be_mapped_after_it_was_met(session: Session) -> None:
    """A class is searched even if its mapping is declared late."""
    late: Any = type("Late", (), {})
    assert list(mapped_states([late()])) == []
    registry().map_imperatively(late, Table("mapped_late", MetaData(), Column("id", Integer, primary_key=True)))
    session.add(one := late())
    assert list(attached_states([one])) == [session]


def test_a_generator_is_left_alone() -> None:
    """A generator is not searched, because its values are for the handlers."""
    values = (value for value in [1, 2])
    assert list(mapped_states([values])) == []
    assert list(values) == [1, 2]
