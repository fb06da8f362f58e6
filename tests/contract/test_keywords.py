"""Keyword arguments of an emission may have any name but `sender`: contract section 4."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from nitro.infrastructure.events import Event, emit, emit_async, on

NAMES = ["self", "order", "handler", "evt", "event", "name", "args", "kwargs", "priority", "emission", "call", "task"]
NAMES += ["message", "app", "condition", "declaration", "function", "exc", "options"]
KWARGS = dict.fromkeys(NAMES, 1)

Work = Callable[..., Any]


@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize("emitting", ["emit", "emit_async"])
def test_any_keyword_reaches_an_inline_handler(evt: Event, weak: bool, emitting: str) -> None:
    """Keywords may have the names that Nitro uses itself."""

    def handler(sender: object, /, **kwargs: Any) -> Any:
        return kwargs

    on(evt, weak=weak, condition=lambda sender, /, **kwargs: kwargs == KWARGS)(handler)
    emission = emit(evt, "ada", **KWARGS) if emitting == "emit" else asyncio.run(emit_async(evt, "ada", **KWARGS))
    assert emission == [KWARGS]


@pytest.mark.parametrize("weak", [False, True])
def test_any_keyword_reaches_a_method(evt: Event, weak: bool) -> None:
    """A keyword may have the name of a bound method's own first parameter."""

    class Service:
        def handle(self, sender: object, /, **kwargs: Any) -> Any:
            return kwargs

    service = Service()
    on(evt, weak=weak)(service.handle)
    assert emit(evt, "ada", **KWARGS) == [KWARGS]


def test_any_keyword_reaches_an_offloaded_handler(evt: Event, app: Celery, work: Work) -> None:
    """Keywords are inside the payload, so that Celery does not take them for its own."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any, /, **kwargs: Any) -> Any:
        return kwargs

    assert work(app).only(emit(evt, "ada", **KWARGS)) == KWARGS


def test_name_of_a_positional_only_parameter_is_free(evt: Event, app: Celery, work: Work) -> None:
    """`handler(order, /, **kwargs)` takes a keyword `order` beside its sender."""

    @on(evt, offload=True, name="shop.handler")
    def handler(order: Any, /, **kwargs: Any) -> Any:
        return [order, kwargs]

    assert work(app).only(emit(evt, "ada", order=2)) == ["ada", {"order": 2}]


def test_positional_only_parameter_is_checked_at_the_emit(evt: Event, app: Celery) -> None:
    """A positional-only parameter that is given by name raises at the emit."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any, total: Any, /) -> None: ...

    with pytest.raises(TypeError, match=r"shop\.handler"):
        emit(evt, "ada", total=2)
