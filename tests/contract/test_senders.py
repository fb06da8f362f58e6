"""Senders with special attribute access: protocols with data members, and a `__getattr__` that raises."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pytest
from celery import Celery

from nitro.infrastructure.events import ANY, Event, emit, on


@runtime_checkable
class Priced(Protocol):
    price: float


class Item: ...


@dataclass
class Hostile:
    """A sender whose `__getattr__` raises KeyError."""

    total: int = 3

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


def test_protocol_with_a_data_member_is_decided_per_instance(evt: Event) -> None:
    """Each instance is checked against a protocol with a data member, whichever instance comes first."""
    on(evt, sender=Priced)(lambda sender: "heard")
    free, priced = Item(), Item()
    priced.price = 1.0  # type: ignore[attr-defined]  # the member makes it Priced
    assert [emit(evt, sender) for sender in (free, priced, free)] == [[], ["heard"], []]


def test_protocol_is_decided_at_each_emit(evt: Event) -> None:
    """An instance that gets the protocol's member matches from the next emit on."""
    on(evt, sender=Priced)(lambda sender: "heard")
    item = Item()
    before = emit(evt, item)
    item.price = 1.0  # type: ignore[attr-defined]  # the member makes it Priced
    assert (before, emit(evt, item)) == ([], ["heard"])


@pytest.mark.parametrize("sender", [ANY, Hostile, Item])
def test_hostile_sender_is_heard_inline(evt: Event, sender: Any) -> None:
    """A match by class reads no attribute of the instance."""
    on(evt, sender=sender)(lambda heard: heard.total)
    assert emit(evt, Hostile()) == ([] if sender is Item else [3])


def test_hostile_sender_is_heard_as_that_object(evt: Event) -> None:
    """A match by object compares identity."""
    first, other = Hostile(), Hostile()
    on(evt, sender=first)(lambda heard: "heard")
    assert [emit(evt, sender) for sender in (first, other)] == [["heard"], []]


def test_hostile_sender_travels_and_is_shown(
    evt: Event, app: Celery, sent: Callable[..., list[Any]], work: Callable[..., Any]
) -> None:
    """A sender with a raising `__getattr__` arrives in the worker, and monitoring shows its class."""
    on(evt, offload=True, name="shop.handler")(lambda sender: sender.total)
    emit(evt, Hostile())
    (message,) = sent()
    assert ast.literal_eval(message.headers["kwargsrepr"])["sender"] == "Hostile"
    assert work(app).only(emit(evt, Hostile(total=5))) == 5
