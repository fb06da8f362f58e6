"""Plain: whether nobody but Celery and kombu has a hand in the messages of a task, so that they may be filled in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import celery
import kombu
from celery import Celery, signals
from celery.app.routes import MapRoute

_OWN_CODE = (str(Path(celery.__file__).parent), str(Path(kombu.__path__[0])), str(Path(__file__).parents[2]))
_BY_TASK = ("apply_async", "shadow_name", "_get_exec_options")
_BY_APP = ("send_task", "producer_or_acquire")
_BY_AMQP = ("as_task_v2", "_create_task_sender", "send_task_message", "create_task_message")
_LEAVES_PUBLISHERS_ALONE = ("Backend.on_task_call", "RedisBackend.on_task_call")
"""Of result backends. Redis listens for the result, for as long as the publisher keeps what `apply_async` returns."""


def is_watched() -> bool:
    """Whether somebody wants to know of each message."""
    before, after, sent = signals.before_task_publish, signals.after_task_publish, signals.task_sent
    return bool(before.receivers or after.receivers or sent.receivers)


def is_plain(app: Celery, producer: Any, task: Any) -> bool:
    """Whether nothing but Celery's and kombu's own code makes the messages of a task, and makes them all alike."""
    if task is None or not routes_alike(app.amqp.router):
        return False
    if not task.ignore_result and task.backend.on_task_call.__qualname__ not in _LEAVES_PUBLISHERS_ALONE:
        return False
    makers = (
        (task, _BY_TASK),
        (app, _BY_APP),
        (app.amqp, _BY_AMQP),
        (app.amqp.router, ("route",)),
        (producer, ("publish", "_publish")),
    )
    return all(_is_own(found) for owner, names in makers for name in names for found in _all_of(owner, name))


def routes_alike(router: Any) -> bool:
    """Whether a router finds the same for a task each time."""
    return all(isinstance(route, MapRoute) for route in router.routes)


def _all_of(owner: Any, name: str) -> Iterator[Any]:
    """What an object has by that name, and each of its classes."""
    places = (owner, *type(owner).__mro__)
    return (vars(place)[name] for place in places if name in vars(place))


def _is_own(function: Any) -> bool:
    """Whether it is code of Celery, kombu or Nitro, and nothing that somebody has put in its place."""
    function = getattr(function, "func", function)  # of a cached property
    function = getattr(function, "__func__", function)
    return type(function) is FunctionType and function.__code__.co_filename.startswith(_OWN_CODE)
