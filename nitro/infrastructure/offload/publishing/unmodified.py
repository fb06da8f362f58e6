"""The check that Celery's and kombu's own code makes the messages of a task, so that a template may replace it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import celery
import kombu
from celery import Celery, signals

from nitro.infrastructure.offload.destinations import has_static_routes

_LIBRARY_PATHS = (str(Path(celery.__file__).parent), str(Path(kombu.__path__[0])), str(Path(__file__).parents[3]))
_TASK_METHODS = ("apply_async", "shadow_name", "_get_exec_options")
_APP_METHODS = ("send_task", "producer_or_acquire")
_AMQP_METHODS = ("as_task_v2", "_create_task_sender", "send_task_message", "create_task_message")
_PASSIVE_BACKEND_METHODS = ("Backend.on_task_call", "RedisBackend.on_task_call")
"""`on_task_call` methods that a template may skip: Redis's subscribes to a result that the publisher drops."""


def has_publish_receivers() -> bool:
    """Whether a receiver is connected to one of Celery's publish signals."""
    before, after, sent = signals.before_task_publish, signals.after_task_publish, signals.task_sent
    return bool(before.receivers or after.receivers or sent.receivers)


def is_unmodified(app: Celery, producer: Any, task: Any) -> bool:
    """Whether nothing but Celery's and kombu's own code makes the messages of a task, and makes them all alike."""
    if task is None or not has_static_routes(app.amqp.router):
        return False
    if not task.ignore_result and task.backend.on_task_call.__qualname__ not in _PASSIVE_BACKEND_METHODS:
        return False
    makers = (
        (task, _TASK_METHODS),
        (app, _APP_METHODS),
        (app.amqp, _AMQP_METHODS),
        (app.amqp.router, ("route",)),
        (producer, ("publish", "_publish")),
    )
    return all(
        _is_library_code(definition)
        for owner, names in makers
        for name in names
        for definition in _definitions_of(owner, name)
    )


def _definitions_of(owner: Any, name: str) -> Iterator[Any]:
    """Yields every definition of an attribute: in the object itself and in each of its classes."""
    scopes = (owner, *type(owner).__mro__)
    return (vars(scope)[name] for scope in scopes if name in vars(scope))


def _is_library_code(function: Any) -> bool:
    """Whether a function is code of Celery, kombu or Nitro, and not a replacement by other code."""
    function = getattr(function, "func", function)  # of a cached property
    function = getattr(function, "__func__", function)
    return type(function) is FunctionType and function.__code__.co_filename.startswith(_LIBRARY_PATHS)
