"""Senders that answer for themselves: protocols with data members, and a `__getattr__` that raises."""

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
    """A sender whose missing attributes raise anything but AttributeError."""

    total: int = 3

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


def test_protocol_with_a_data_member_is_decided_per_instance(evt: Event) -> None:
    """What one instance of a class has says nothing of the next one, whichever is first."""
    on(evt, sender=Priced)(lambda sender: "heard")
    free, priced = Item(), Item()
    priced.price = 1.0  # type: ignore[attr-defined]  # that is what makes it Priced
    assert [emit(evt, sender) for sender in (free, priced, free)] == [[], ["heard"], []]


def test_protocol_is_decided_at_each_emit(evt: Event) -> None:
    """An instance that gets the member later is heard from then on."""
    on(evt, sender=Priced)(lambda sender: "heard")
    item = Item()
    before = emit(evt, item)
    item.price = 1.0  # type: ignore[attr-defined]  # that is what makes it Priced
    assert (before, emit(evt, item)) == ([], ["heard"])


@pytest.mark.parametrize("sender", [ANY, Hostile, Item])
def test_hostile_sender_is_heard_inline(evt: Event, sender: Any) -> None:
    """Nothing is asked of the instance that its class can answer."""
    on(evt, sender=sender)(lambda heard: heard.total)
    assert emit(evt, Hostile()) == ([] if sender is Item else [3])


def test_hostile_sender_is_heard_as_that_object(evt: Event) -> None:
    """It is known by being the same one."""
    mine, other = Hostile(), Hostile()
    on(evt, sender=mine)(lambda heard: "heard")
    assert [emit(evt, sender) for sender in (mine, other)] == [["heard"], []]


def test_hostile_sender_travels_and_is_shown(
    evt: Event, app: Celery, sent: Callable[..., list[Any]], work: Callable[..., Any]
) -> None:
    """Offloaded it arrives, and monitoring shows its class."""
    on(evt, offload=True, name="shop.handler")(lambda sender: sender.total)
    emit(evt, Hostile())
    (message,) = sent()
    assert ast.literal_eval(message.headers["kwargsrepr"])["sender"] == "Hostile"
    assert work(app).only(emit(evt, Hostile(total=5))) == 5
