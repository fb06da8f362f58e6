"""Payloads in `outbox show`, and the values in them that are masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import pytest
from pydantic import BaseModel

from nitro.cli.render import MASK, mask_payload
from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.offload.codec import encode

T = TypeVar("T")


class Finding(BaseModel, Generic[T]):
    """A generic model, which a test parametrises."""

    __nitro_mask__: ClassVar[tuple[str, ...]] = ("result",)

    result: T


class Patient(Entity):
    """An entity that declares a secret field."""

    __nitro_mask__: ClassVar[tuple[str, ...]] = ("diagnosis",)

    name: str = ""
    diagnosis: str = ""
    password: str = ""


@dataclass
class Visit:
    """A dataclass that declares a secret field."""

    __nitro_mask__: ClassVar[tuple[str, ...]] = ("reason",)

    room: int
    reason: str


def shown(sender: object = None, *args: object, **kwargs: object) -> Any:
    """Returns the masked payload of an emit."""
    return mask_payload(encode(sender, args, kwargs, entity="snapshot"))


@pytest.mark.parametrize(
    "name",
    ["password", "db_pwd_secret", "card_number", "accessToken", "api_key", "email", "customer_email", "phone", "iban"],
)
def test_what_is_named_like_a_secret_is_masked(name: str) -> None:
    """A value with a secret name is masked as a keyword argument, and at any depth."""
    payload = shown(**{name: "4111", "order": {"lines": [{name: "4111", "total": 3}]}})
    assert payload["kwargs"] == {name: MASK, "order": {"lines": [{name: MASK, "total": 3}]}}


@pytest.mark.parametrize("name", ["total", "status", "monkey", "keyboard", "author_name", "spin", "passenger"])
def test_other_values_are_shown(name: str) -> None:
    """A value without a secret name is shown, so that errors can be understood."""
    assert shown(**{name: "x"})["kwargs"] == {name: "x"}


def test_a_class_names_its_own_secrets() -> None:
    """`__nitro_mask__` adds to the names that are always masked; other fields are shown."""
    payload = shown(Patient(id="p1", name="Ada", diagnosis="flu", password="x"), Visit(3, "flu"))
    assert payload["entities"][0]["fields"] == {"id": "p1", "name": "Ada", "diagnosis": MASK, "password": MASK}
    assert payload["args"][0]["$dataclass"][1] == {"room": 3, "reason": MASK}
    assert "flu" not in str(payload)


def test_a_parametrised_class_hides_what_its_origin_does() -> None:
    """A parametrised class has the masked names of its origin."""
    payload = shown(Finding[str](result="flu"))
    assert payload["sender"]["$model"]["fields"] == {"result": MASK}
