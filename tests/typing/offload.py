"""Types of offloaded handlers, for the type checker only; nothing runs this file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from celery import Celery

from nitro.infrastructure.events import Emission, emit, event, on
from nitro.infrastructure.events.registration import HandlerTask
from nitro.infrastructure.offload import Offload, bind, cancel, current_delivery
from nitro.infrastructure.offload.delivery import Delivery

placed = event("order-placed")


@on(placed, offload=True)
def send_mail(sender: str, *, total: float = 0.0) -> int:
    return len(sender)


@on(placed, offload=Offload(queue="mail", max_retries=3, throws=(KeyError,)))
async def charge(sender: str) -> str:
    return sender


@on(placed, offload={"queue": "mail"})
def steps(sender: str) -> Iterator[int]:
    yield 1


@on("order.*", offload=Offload(delivery="broker", entity="reload", on_missing="skip"))
async def stream(sender: str) -> AsyncIterator[int]:
    yield 1


@on(placed)
def inline(sender: str) -> int:
    return 1


# An offloaded function keeps its signature and gains `.task`.
assert_type(send_mail("ada", total=1.0), int)


async def awaits() -> None:
    assert_type(await charge("ada"), str)


assert_type(steps("ada"), Iterator[int])
assert_type(stream("ada"), AsyncIterator[int])
assert_type(send_mail.task, HandlerTask)
assert_type(send_mail.task.name, str)
send_mail.task.delay("ada", total=1.0)
charge.task.s("ada").apply_async()
charge.task.apply_async(("ada",), {"total": 1.0}, countdown=5)

# A wrong call is one, offloaded or not.
send_mail("ada", totl=1.0)  # type: ignore[call-arg]  # no such argument
send_mail(3)  # type: ignore[arg-type]  # the sender is a text

# An inline handler has no task.
assert_type(inline("ada"), int)
inline.task  # type: ignore[attr-defined]  # only offloaded functions have one

# Options have types of their own.
Offload(delivery="twice")  # type: ignore[arg-type]  # no such promise
Offload(entity="copy")  # type: ignore[arg-type]  # no such mode
Offload(quue="mail")  # type: ignore[call-arg]  # no such option

# What an emit returns, and what a handler may ask for.
assert_type(emit(placed, "ada"), Emission)
assert_type(emit(placed, "ada").offloaded, dict[str, str])
assert_type(current_delivery(), Delivery | None)
assert_type(cancel("emission"), int)
app: Celery = bind(Celery("shop"))
