"""Publisher: the dispatcher that makes one Celery task of each offloaded handler and publishes them as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery

from nitro.errors import DispatchError, EmitError, PayloadError
from nitro.infrastructure import scope
from nitro.infrastructure.database import commit_for
from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.dispatcher import Call
from nitro.infrastructure.events.handler import Handler
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.declarations import declare, declared, header
from nitro.infrastructure.offload.message import Message, delivery_id
from nitro.infrastructure.offload.options import Offload


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One task message before it is published."""

    handler: str
    kwargs: dict[str, Any]
    options: dict[str, Any]


class Publisher:
    """Queues handlers through the current Celery app."""

    def declare(self, function: Callable[..., Any], name: str, offload: object) -> tuple[Offload, Any]:
        """Check and keep an offloaded function."""
        return declare(function, name, offload)

    def dispatch(self, emission: Emission, call: Call, handlers: Sequence[Handler]) -> Callable[[], None]:
        """Serialise once for all handlers of a mode; the step that is returned publishes.

        Raises:
            PayloadError: a value cannot travel; names the handlers.
            EmitError: a handler does not take these arguments.
        """
        messages = _messages(emission, call, handlers)
        parcels = []
        for handler in handlers:
            options = _options(handler)
            task_id = delivery_id(emission.id, handler.name)
            parcels.append(
                Parcel(
                    handler=handler.name,
                    kwargs=messages[options.entity].kwargs(handler.name),
                    options={**options.message(), "task_id": task_id},
                )
            )
        emission.offloaded.update((parcel.handler, parcel.options["task_id"]) for parcel in parcels)
        return partial(publish, current_app(), emission.event, parcels)

    def commit(self, call: Call) -> scope.Commit | None:
        """The commit that this emit waits for, or None.

        Raises:
            TransactionError: its entities are in sessions of two databases.
        """
        return commit_for((call.sender, *call.args, *call.kwargs.values()))

    def weigh(self, call: Call, handlers: Sequence[Handler]) -> list[int]:
        """The bytes of payload that `dispatch` would send to each.

        Raises:
            PayloadError: a value cannot travel.
        """
        messages = _messages(Emission(""), call, handlers)
        return [len(messages[_options(handler).entity].payload) for handler in handlers]


def publish(app: Celery, event: str, parcels: Sequence[Parcel]) -> None:
    """Publish task messages in one batch, where the broker has such a thing, through one producer.

    Raises:
        DispatchError: the broker did not take them; names those that it did not surely take.
    """
    if app.conf.task_always_eager:
        for parcel in parcels:
            app.tasks[parcel.handler].apply_async(kwargs=parcel.kwargs, **parcel.options)
        return
    waiting = [parcel.handler for parcel in parcels]
    try:
        with app.producer_or_acquire() as producer, producer.batch():
            at_once = not producer.supports_batch_publish
            for parcel in parcels:
                app.tasks[parcel.handler].apply_async(kwargs=parcel.kwargs, producer=producer, **parcel.options)
                if at_once:
                    waiting.remove(parcel.handler)
    except Exception as error:
        raise DispatchError(event, waiting, error) from error


def _options(handler: Handler) -> Offload:
    assert isinstance(handler.offload, Offload)
    return handler.offload


def _messages(emission: Emission, call: Call, handlers: Sequence[Handler]) -> dict[str, Message]:
    """The message of each mode in which these handlers want their entities; one payload for each."""
    messages: dict[str, Message] = {}
    for handler in handlers:
        _check_call(handler, call)
        mode = _options(handler).entity
        if mode not in messages:
            try:
                messages[mode] = Message.of(emission, call, mode)
            except PayloadError as error:
                names = [other.name for other in handlers if _options(other).entity == mode]
                raise PayloadError(error.argument, error.kind, error.why, names) from error
    return messages


def _check_call(handler: Handler, call: Call) -> None:
    """Find out here, and not in the worker, that a handler does not take these arguments."""
    if _options(handler).typing is False:
        return
    try:
        header(declared[handler.name].function)(call.sender, *call.args, **call.kwargs)
    except TypeError as error:
        raise EmitError(f"handler {handler.name} does not take what was emitted: {error}") from error
