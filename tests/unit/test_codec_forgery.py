"""The payload codec: damaged and forged payloads are refused and run no code."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, Flag, auto
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from nitro.domain.entities.base_entity import Entity
from nitro.errors import PayloadUnreadable
from nitro.infrastructure.offload.codec import decode

HERE = __name__


class Color(Enum):
    RED = "r"


class Access(Flag):
    READ = auto()
    WRITE = auto()


@dataclass
class Point:
    x: int
    y: object = 0


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


class Draft(Entity):
    """An entity without a table."""

    title: str = ""
    other: object = None


def forged(sender: object, **parts: object) -> str:
    """Returns a payload that was not made by `encode`."""
    return json.dumps({"nitro": 1, "sender": sender, "args": [], "kwargs": {}, "entities": []} | parts)


def test_other_format_is_unreadable() -> None:
    """A payload of another version is refused."""
    with pytest.raises(PayloadUnreadable, match="format 1"):
        decode(forged(None, nitro=2))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "null", '{"nitro":1}', '{"nitro":1,"sender":NaN,"args":[],"kwargs":{}}', "[" * 100_000, "9" * 9999],
    ids=lambda text: text[:20],
)
def test_damaged_text_is_unreadable(text: str) -> None:
    """Text that is no payload is refused."""
    with pytest.raises(PayloadUnreadable):
        decode(text)


@pytest.mark.parametrize(
    "sender",
    [
        {"$nothing": 1},
        {"$tuple": 5},
        {"$tuple": "ab"},
        {"$set": [[1]]},
        {"$dict": {"ab": 1}},
        {"$dict": [[1]]},
        {"$dict": [[[], 1]]},
        {"$int": 5},
        {"$int": "zz"},
        {"$str": "d"},
        {"$bytes": "?"},
        {"$datetime": "noon"},
        {"$datetime": ["2024-01-01", 7]},
        {"$datetime": ["2024-01-01", 0, 0, "../../etc/passwd"]},
        {"$datetime": ["2024-01-01", 0, 0, 5]},
        {"$time": ["01:00", 0, None, "Nowhere"]},
        {"$timedelta": [10**12, 0, 0]},
        {"$decimal": "one"},
        {"$uuid": 5},
        {"$entity": 0},
        {"$entity": "0"},
        {"$enum": [f"{HERE}:Color", "BLUE"]},
        {"$enum": [f"{HERE}:Color"]},
        {"$enum": [f"{HERE}:Point", "RED"]},
        {"$flag": [f"{HERE}:Color", 1]},
        {"$flag": [f"{HERE}:Access", "x"]},
        {"$flag": [f"{HERE}:Access", 64]},
        {"$dataclass": [f"{HERE}:Point", None]},
        {"$dataclass": [f"{HERE}:Price", {}]},
        {"$dataclass": [5, {}]},
        {"$model": {"class": f"{HERE}:Draft", "fields": {}, "set": []}},
        {"$model": {"class": f"{HERE}:Open"}},
        {"$model": []},
    ],
    ids=str,
)
def test_wrong_shape_is_unreadable(sender: object) -> None:
    """An unknown tag, a body of the wrong shape or a class of another kind is refused."""
    with pytest.raises(PayloadUnreadable):
        decode(forged(sender))


def test_deep_forgery_is_unreadable() -> None:
    """A payload nested deeper than the stack is refused and does not end the process."""
    with pytest.raises(PayloadUnreadable):
        decode('{"nitro":1,"sender":' + "[" * 100_000 + "]" * 100_000 + ',"args":[],"kwargs":{}}')


@pytest.mark.parametrize("reference", ["subprocess:Popen", "os:system", "builtins:eval", "builtins:dict", "nowhere:X"])
@pytest.mark.parametrize("tag", ["$enum", "$flag", "$dataclass", "$model", "entities", "rows"])
def test_forged_class_is_refused_and_not_called(reference: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no class of that kind is refused; nothing is called."""
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda *a, **k: pytest.fail("called"))
    body: Any = {"class": reference, "fields": {}, "set": []} if tag == "$model" else [reference, {}]
    parts: dict[str, object] = {"entities": [{"class": reference, "stored": True}], "rows": [[reference, 1]]}
    text = forged(None, **{tag: parts[tag]}) if tag in parts else forged({tag: body})
    with pytest.raises(PayloadUnreadable):
        decode(text, load=lambda cls, key: pytest.fail("called"))


def test_nothing_is_imported_for_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of a module that is not loaded is unreadable, and the module stays unloaded."""
    (tmp_path / "codec_unloaded.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PayloadUnreadable, match="NITRO_HANDLERS"):
        decode(forged({"$dataclass": ["codec_unloaded:X", {}]}))
    assert "codec_unloaded" not in sys.modules


def test_module_getattr_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that imports on attribute access is not asked for what it does not have."""
    lazy = ModuleType("codec_lazy")
    asked: list[str] = []
    lazy.__getattr__ = lambda name: asked.append(name) or Color
    monkeypatch.setitem(sys.modules, "codec_lazy", lazy)
    with pytest.raises(PayloadUnreadable):
        decode(forged({"$enum": ["codec_lazy:Color", "RED"]}))
    assert "Color" not in asked
