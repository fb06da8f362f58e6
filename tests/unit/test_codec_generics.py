"""The payload codec: a parametrised class is made again from its origin and its arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Generic, List, Literal, NewType, Optional, TypeVar  # noqa: UP035

import pytest
from annotated_types import Gt, Len
from pydantic import BaseModel, Field, RootModel

from nitro.errors import PayloadError, PayloadUnreadable
from nitro.infrastructure.offload.codec import decode, encode, references

T = TypeVar("T")
U = TypeVar("U")
UserId = NewType("UserId", int)
HERE = __name__


class Suit(Enum):
    HEART = 1


class Box(BaseModel, Generic[T]):
    content: T


class Pair(BaseModel, Generic[T, U]):
    left: T
    right: U


class Labelled(Box[T], Generic[T, U]):
    label: U


class IntBox(Box[int]):
    colour: str = "red"


class Line(BaseModel):
    sku: str


class Outer:
    class Inner(BaseModel, Generic[T]):
        content: T


@dataclass
class Cell(Generic[T]):
    value: T


class Hooked:
    """A class that counts pydantic's requests for its schema."""

    asked = 0

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        cls.asked += 1
        return handler(str)


class Greedy:
    """A class that counts its subscriptions."""

    asked = 0

    def __class_getitem__(cls, item: object) -> type:
        cls.asked += 1
        return cls


class GreedyBox(BaseModel, Generic[T]):
    content: T

    def __class_getitem__(cls, item: Any) -> Any:
        pytest.fail("called")


def carried(value: object) -> Any:
    """Returns the decoded value of a sender."""
    return decode(encode(value, (), {})).sender


def made_here() -> list[Any]:
    """Returns instances of classes that are parametrised inside a function, so that pydantic gives them no name."""
    at = datetime(2024, 1, 1)
    return [
        Box[bytes](content=b"b"),
        Box[list[dict[str, Decimal]]](content=[{"a": Decimal(1)}]),
        Box[List[int]](content=[1]),  # noqa: UP006
        Box[int | None](content=None),
        Box[Optional[float]](content=None),  # noqa: UP045
        Box[None](content=None),
        Box[Any](content=(1,)),
        Box[Literal["a", 1, None]](content=1),
        Box[Literal[Suit.HEART]](content=Suit.HEART),
        Box[Annotated[int, Gt(0)]](content=1),
        Box[Annotated[list[int], Len(1, 3)]](content=[1]),
        Box[tuple[int, ...]](content=(1, 2)),
        Box[Sequence[datetime]](content=[at]),
        Box[UserId](content=1),
        Box[type[int] | None](content=None),
        Box[Cell[int]](content=Cell(1)),
        Box[Box[Pair[int, Line]]](content=Box[Pair[int, Line]](content=Pair[int, Line](left=1, right=Line(sku="a")))),
        Pair[int, datetime](left=1, right=at),
        Pair[U, int][bytes](left=b"", right=1),
        Pair[int, T](left=1, right="x"),
        Labelled[int, bytes](content=1, label=b"x"),
        Outer.Inner[bytes](content=b""),
        RootModel[list[Line]]([Line(sku="a")]),
        IntBox(content=1),
    ]


@pytest.mark.parametrize("value", made_here(), ids=lambda value: type(value).__name__)
def test_instance_of_a_parametrised_class_arrives(value: Any) -> None:
    """Origin, arguments and values are the same."""
    arrived = carried(value)
    assert arrived == value
    assert type(arrived).__pydantic_generic_metadata__ == type(value).__pydantic_generic_metadata__


@pytest.mark.parametrize("value", made_here()[:8], ids=lambda value: type(value).__name__)
def test_class_is_the_same_one(value: Any) -> None:
    """A class that the receiver has parametrised already is used again."""
    assert type(carried(value)) is type(value)


def test_generic_dataclass_arrives_with_its_arguments() -> None:
    """A dataclass arrives with the arguments that it was parametrised with."""
    arrived = carried(Cell[list[int]]([1]))
    assert arrived == Cell([1])
    assert arrived.__orig_class__ == Cell[list[int]]


def test_generic_dataclass_of_a_local_class_arrives_without_it() -> None:
    """A local class as argument is left out, because a worker cannot find it."""

    class Local: ...

    assert carried(Cell[Local](1)) == Cell(1)


def test_receiver_need_not_have_made_the_class(tmp_path: Path) -> None:
    """A new process that has loaded origin and arguments decodes the payload."""
    (tmp_path / "codec_shop.py").write_text(
        "from typing import Generic, TypeVar\n"
        "from pydantic import BaseModel\n"
        "T = TypeVar('T')\n"
        "class Order(BaseModel):\n    id: int\n"
        "class Page(BaseModel, Generic[T]):\n    items: T\n"
    )
    make = "from codec_shop import *\nfrom nitro.infrastructure.offload.codec import *\n"
    send = make + "def run():\n    print(encode(Page[list[Order]](items=[Order(id=7)]), (), {}))\nrun()\n"
    read = (
        make + "import sys\nvalue = decode(sys.stdin.read()).sender\nprint(type(value).__name__, value.items[0].id)\n"
    )
    text = _python(send, tmp_path)
    assert _python(read, tmp_path, text).strip() == "Page[list[Order]] 7"


def test_payload_of_an_older_version_names_the_class_itself() -> None:
    """A class that pydantic has put into its module is found by that name."""
    globals()["Box[decimal.Decimal]"] = Box[Decimal]
    old = {"class": f"{HERE}:Box[decimal.Decimal]", "fields": {"content": {"$decimal": "1"}}, "set": ["content"]}
    assert decode(forged({"$model": old})).sender == Box[Decimal](content=Decimal(1))


def test_class_with_a_name_in_its_module_travels_by_it() -> None:
    """A class whose arguments cannot be encoded arrives if a name at module level refers to it."""
    cls = Box[Annotated[int, Field(gt=0)]]
    globals()[cls.__name__] = cls
    assert type(carried(cls(content=1))) is cls


def test_arguments_without_a_name_are_refused() -> None:
    """The error names the obstacle and the remedy."""

    class Local(BaseModel): ...

    for cls in (Box[Local], Box[Annotated[int, Field(gt=1)]], Box[Callable[[int], str]], Box[Hooked]):
        with pytest.raises(PayloadError, match=r"cannot make it again.*at module level"):
            encode(cls.model_construct(content=1), (), {})


def forged(sender: object) -> str:
    """Returns a payload that was not made by `encode`."""
    return json.dumps({"nitro": 1, "sender": sender, "args": [], "kwargs": {}, "entities": []})


def box(*arguments: object) -> str:
    """A forged box of these arguments."""
    return forged({"$model": {"class": [f"{HERE}:Box", list(arguments)], "fields": {"content": 1}, "set": []}})


@pytest.mark.parametrize(
    "argument",
    [
        "os:system",
        "builtins:eval",
        "nowhere:X",
        "subprocess",
        f"{HERE}:Hooked",
        "pydantic.networks:EmailStr",
        ["builtins:list", [f"{HERE}:Hooked"]],
        [f"{HERE}:GreedyBox", ["builtins:int"]],
        ["os:system", ["builtins:int"]],
        ["Annotated", ["builtins:int", ["subprocess:Popen", {"args": "x"}]]],
        ["Annotated", ["builtins:int", [f"{HERE}:Cell", {"value": 1}]]],
        ["Literal", [[f"{HERE}:Cell", "value"]]],
        ["Literal", [[1]]],
        ["|", ["builtins:int", 5]],
        ["List", ["builtins:int", "builtins:str"]],
        ["builtins:list", []],
        ["builtins:list", "ab"],
        [],
        5,
        None,
        {"a": 1},
    ],
    ids=str,
)
def test_forged_argument_is_unreadable(argument: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument that is no class of a loaded module is refused, and its code is not called."""
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda *a, **k: pytest.fail("called"))
    asked = Hooked.asked
    with pytest.raises(PayloadUnreadable):
        decode(box(argument))
    assert Hooked.asked == asked


def test_class_is_not_asked_for_its_own_subscription() -> None:
    """A `__class_getitem__` that is not pydantic's or typing's is not called."""
    with pytest.raises(PayloadUnreadable):
        decode(forged({"$model": {"class": [f"{HERE}:Greedy", ["builtins:int"]], "fields": {}, "set": []}}))
    assert Greedy.asked == 0


def test_nothing_is_imported_for_an_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument of a module that is not loaded is unreadable, and the module stays unloaded."""
    (tmp_path / "codec_unloaded_argument.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PayloadUnreadable, match="NITRO_HANDLERS"):
        decode(box("codec_unloaded_argument:X"))
    assert "codec_unloaded_argument" not in sys.modules


def test_messages_make_a_bounded_number_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new parametrised class beyond the limit is unreadable, and known classes still arrive."""
    monkeypatch.setattr(references, "_parametrised", {})
    monkeypatch.setattr(references, "MAX_PARAMETRISED_CLASSES", 3)
    for number in range(3):
        decode(box(["Literal", [number]]))
    with pytest.raises(PayloadUnreadable, match="3 parametrised classes"):
        decode(box(["Literal", [3]]))
    assert decode(box(["Literal", [0]])).sender.content == 1


def test_endless_argument_is_unreadable() -> None:
    """A reference with too many nested arguments is refused."""
    nested: Any = "builtins:int"
    for _ in range(90):
        nested = ["builtins:list", [nested]]
    with pytest.raises(PayloadUnreadable):
        decode(box(*[nested] * 9))


def _python(source: str, place: Path, text: str = "") -> str:
    paths = [*sys.path, str(place)]
    program = f"import sys; sys.path[:] = {paths!r}\n{source}"
    return subprocess.run(
        [sys.executable, "-c", program], input=text, capture_output=True, text=True, check=True, timeout=60
    ).stdout
