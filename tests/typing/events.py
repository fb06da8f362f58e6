"""The static types that a user of events sees; checked by mypy --strict, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, assert_type

import nitro
from nitro import Offload
from nitro.infrastructure.events import (
    ANY,
    Emission,
    Event,
    Namespace,
    default_namespace,
    drain,
    drain_async,
    emit,
    emit_async,
    event,
    filter_signals,
    on,
)
from nitro.infrastructure.events.explain import Explanation
from nitro.infrastructure.events.registration import HandlerTask, Offloaded

nitro.emitt  # type: ignore[attr-defined]  # a name that is misspelt is an error, from a module
emit("placed").cancelled  # type: ignore[attr-defined]  # and of an emission

placed = event("order.placed", doc="an order was placed")
assert_type(placed, Event)
assert_type(Namespace().event("order.placed"), Event)
assert_type(default_namespace, Namespace)
assert_type(filter_signals("order.*"), dict[str, Event])


@on(placed)
def plain(sender: str, *, total: int) -> bool:
    return total > 0


assert_type(plain("ada", total=1), bool)
plain("ada", total="1")  # type: ignore[arg-type]  # the handler keeps its own signature


@on("order.*", sender=str, weak=True, priority=3, condition=lambda sender: True, on_error="log", name="shop.audit")
async def audit(sender: str) -> int:
    return 1


working: Coroutine[Any, Any, int] = audit("ada")


@on(placed, sender=ANY, offload=False)
def generator(sender: str) -> Iterator[int]:
    yield 1


assert_type(generator("ada"), Iterator[int])


@on(placed)
async def async_generator(sender: str) -> AsyncIterator[int]:
    yield 1


assert_type(async_generator("ada"), AsyncIterator[int])
plain.task  # type: ignore[attr-defined]  # an inline handler has no task


@on(placed, offload=True)
def mail(sender: str, *, total: int) -> bool:
    return True


assert_type(mail("ada", total=1), bool)
assert_type(mail.task, HandlerTask)
assert_type(mail.task.name, str)
mail.task.delay("ada", total=1)
mail.task.s("ada", total=1)
mail.task.apply_async(("ada",), {"total": 1}, countdown=3)
mail("ada", total="1")  # type: ignore[arg-type]  # an offloaded handler keeps its signature too


@on(placed, offload=Offload(queue="mail"))
async def remind(sender: str) -> int:
    return 1


@on(placed, offload={"queue": "mail"})
def stock(sender: str) -> None: ...


reminding: Coroutine[Any, Any, int] = remind("ada")
assert_type(remind.task, HandlerTask)
offloaded: Offloaded[[str], None] = stock
callback: Callable[[str], None] = stock

on(placed, offlod=True)  # type: ignore[call-overload]  # a misspelt option is found before the program runs
on(placed, on_error="ignore")  # type: ignore[call-overload]  # so is a wrong choice
on(placed, priority="high")  # type: ignore[call-overload]  # and a wrong type
on(plain)  # type: ignore[call-overload]  # and a forgotten pair of parentheses

assert_type(placed.connect(plain)("ada", total=1), bool)
placed.connect(plain, sender="ada", priority=3, offload=True)
placed.connect(plain, offlod=True)  # type: ignore[call-arg]  # methods know the options as well
placed.disconnect(plain)

assert_type(emit(placed, "ada", 1, total=1), Emission)
assert_type(emit("order.placed"), Emission)
assert_type(placed.emit("ada", total=1), Emission)
assert_type(placed.explain("ada", total=1), Explanation)
assert_type(placed.send("ada", total=1), list[tuple[Callable[..., Any], Any]])
assert_type(drain(), bool)
assert_type(drain(timeout=1.5), bool)
emit(3)  # type: ignore[arg-type]  # neither an event nor a name


async def awaiting() -> None:
    assert_type(await emit_async(placed, "ada", total=1), Emission)
    assert_type(await placed.emit_async("ada", total=1), Emission)
    await drain_async()
    results: list[object] = await emit_async(placed)
    assert results


def reading(emission: Emission) -> None:
    assert_type(emission.id, str)
    assert_type(emission.parent, str | None)
    assert_type(emission.root, str | None)
    assert_type(emission.event, str)
    assert_type(emission.cancelled_by, str | None)
    assert_type(emission.skipped, dict[str, str])
    assert_type(emission.failed, dict[str, BaseException])
    assert_type(emission.offloaded, dict[str, str])
