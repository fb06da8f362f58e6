"""Publisher: the dispatcher that makes one Celery task of each offloaded handler and sends them as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from celery import Celery

from nitro.errors import DispatchError, EmitError, PayloadError
from nitro.infrastructure import scope
from nitro.infrastructure.database import Commits, Transaction, commit_for, flush_awaited
from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.dispatcher import Call
from nitro.infrastructure.events.handler import Handler, identity_of
from nitro.infrastructure.failpoints import failpoint
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.batch import Batch, Fate
from nitro.infrastructure.offload.broker import AMQP, driver_of, is_embedded
from nitro.infrastructure.offload.carriers import given
from nitro.infrastructure.offload.conf import setting
from nitro.infrastructure.offload.courier import courier
from nitro.infrastructure.offload.declarations import declare, declared, header
from nitro.infrastructure.offload.message import Message, delivery_id
from nitro.infrastructure.offload.options import Delivery, Entities, Offload
from nitro.infrastructure.offload.parcel import TRACKED, Parcel
from nitro.infrastructure.offload.story import story_of, written
from nitro.infrastructure.offload.tracking import Commit, outbox

MOST_BYTES = 16 * 1024 * 1024
"""Bytes of an untracked payload over RabbitMQ: the default of its `max_message_size` since 4.0."""


class Publisher:
    """Queues handlers through the current Celery app."""

    def declare(self, function: Callable[..., Any], name: str, offload: object) -> Offload:
        """Check and keep an offloaded function."""
        return declare(function, name, offload)

    def dispatch(
        self, emission: Emission, call: Call, handlers: Sequence[Handler], commit: scope.Commit | None
    ) -> Callable[[], None]:
        """Serialise once for all handlers of a mode, and write rows for tracked ones; the returned step sends.

        Without a commit to wait for, the rows are written and committed by that step.

        Raises:
            PayloadError: a value cannot travel; names the handlers.
            EmitError: a handler does not take these arguments.
            OutboxError: a row cannot be written.
        """
        app = current_app()
        parcels = _parcels(emission, call, handlers, _causes(app))
        emission.offloaded.update({parcel.handler: parcel.task_id for parcel in parcels})
        if any(parcel.tracked for parcel in parcels):
            _check_id(call.sender, parcels)
            story = written(story_of(emission))
            for parcel in parcels:
                parcel.story = story
        if setting(app, "task_always_eager"):
            return partial(_run_here, app, parcels)
        if commit is None:
            return partial(_keep_and_send, app, emission.event, parcels)
        return partial(_send, app, emission.event, _kept(app, parcels, cast(Commit, commit)))

    def commit(self, call: Call, *, flush: bool = False, reading: bool = False) -> Transaction | Commits | None:
        """The commit that this emit waits for, or None.

        Raises:
            TransactionError: its instances are in sessions of two databases, or in two that both write.
        """
        return commit_for(_values(call), flush=flush, reading=reading)

    async def flush(self, call: Call) -> None:
        """Write the instances in it that wait to be, and read expired columns, of sessions that must be awaited."""
        await flush_awaited(_values(call))

    def weigh(self, call: Call, handlers: Sequence[Handler]) -> list[int]:
        """The bytes of payload that `dispatch` would send to each.

        Raises:
            PayloadError: a value cannot travel.
        """
        parcels = _parcels(Emission.of(""), call, handlers, {})
        return [len(parcel.message.payload or "") for parcel in parcels]


def _values(call: Call) -> tuple[object, ...]:
    return call.sender, *call.args, *call.kwargs.values()


def _keep_and_send(app: Celery, event: str, parcels: Sequence[Parcel]) -> None:
    """Write the rows of tracked ones in a transaction of their own, then send.

    Raises:
        DispatchError: an untracked one can neither be sent nor stored; names each.
        OutboxError: a row cannot be written; nothing was sent.
    """
    _send(app, event, _kept(app, parcels, None))


def _kept(app: Celery, parcels: Sequence[Parcel], commit: Commit | None) -> list[Parcel]:
    """Those that are to be sent after the commit, when tracked ones have their rows."""
    tracked = [parcel for parcel in parcels if parcel.tracked]
    leaving = outbox().keep(app, tracked, commit, queued=courier.ready) if tracked else []
    return [parcel for parcel in parcels if not parcel.tracked or parcel in leaving]


def _send(app: Celery, event: str, parcels: Sequence[Parcel]) -> None:
    """Publish all as one batch; only the outcome of untracked ones is waited for, and not for long."""
    failpoint("committed")
    if not parcels:
        return
    untracked = [parcel for parcel in parcels if not parcel.tracked]
    if is_embedded(app):  # a broker that cannot be away
        _settle(event, untracked, courier.carry_here(app, parcels, _put_back))
    elif untracked:
        _settle(event, untracked, courier.send(app, parcels, _put_back))
    else:
        courier.post(app, parcels, _put_back)


def _put_back(batch: Batch) -> None:
    outbox().put_back(batch)


def _settle(event: str, untracked: Sequence[Parcel], batch: Batch) -> None:
    """Store the untracked ones that have not surely left, where that breaks no promise; else raise."""
    fate = batch.fate
    if fate == "sent":
        return
    error = batch.error or TimeoutError("the broker has not answered in time")
    left = [parcel for parcel in untracked if parcel in batch.open]
    storable = [parcel for parcel in left if parcel.store and (fate == "unsent" or _may_repeat(fate, parcel))]
    failed = [parcel.handler for parcel in left if parcel not in storable]
    if storable:
        try:
            outbox().keep(batch.app, storable, None, queued=False)
        except Exception as unstored:  # noqa: BLE001  # raised with the names of all that are not dispatched
            raise DispatchError(event, [parcel.handler for parcel in left], unstored) from error
    if failed:
        raise DispatchError(event, failed, error) from error


def _may_repeat(fate: Fate, parcel: Parcel) -> bool:
    return fate in ("unknown", "sending") and parcel.promise == "broker"


def _run_here(app: Celery, parcels: Sequence[Parcel]) -> None:
    """`task_always_eager`: nothing is kept, nothing is sent."""
    for parcel in parcels:
        message, options = parcel.message, parcel.options
        app.tasks[parcel.handler].apply_async((), message.kwargs(parcel.handler), task_id=parcel.task_id, **options)


def _options(handler: Handler) -> Offload:
    assert isinstance(handler.offload, Offload)
    return handler.offload


def _parcels(emission: Emission, call: Call, handlers: Sequence[Handler], causes: dict[str, str]) -> list[Parcel]:
    """One for each; the payload is serialised once for all that want their entities in the same mode."""
    messages: dict[str, Message] = {}
    carried = given(emission)
    parcels = []
    for handler in handlers:
        options = _options(handler)
        _check_call(handler.name, options, call)
        mode = options.entity
        message = messages.get(mode)
        if message is None:
            message = messages[mode] = _message(emission, call, mode, handlers)
        _check_size(handler.name, options, message)
        parcels.append(
            Parcel(
                handler=handler.name,
                task_id=delivery_id(emission.id, handler.name),
                message=message,
                promise=cast(Delivery, options.delivery),
                mode=mode,
                options={**options.message, **causes},
                carried=carried,
                store=options.broker_down == "store",
            )
        )
    return parcels


def _message(emission: Emission, call: Call, mode: Entities, handlers: Sequence[Handler]) -> Message:
    try:
        return Message.of(emission, call, mode)
    except PayloadError as error:
        names = [handler.name for handler in handlers if _options(handler).entity == mode]
        raise PayloadError(error.argument, error.kind, error.why, names) from error


def _causes(app: Celery) -> dict[str, str]:
    """The Celery task that emits, as the root and parent of what is queued."""
    task = app.current_worker_task
    if task is None:
        return {}
    request = task.request
    causes = {"root_id": request.root_id or request.id, "parent_id": request.id}
    return {name: task_id for name, task_id in causes.items() if task_id}


def _check_id(sender: object, parcels: Sequence[Parcel]) -> None:
    """Find out here that the database has not all characters of an id; none is without those of ASCII."""
    identity = identity_of(sender)
    if identity is None or (key := str(identity[1])).isascii() or outbox().can_store(key):
        return
    names = [parcel.handler for parcel in parcels if parcel.tracked]
    raise PayloadError("sender", type(sender).__name__, f"the database cannot store its id {key!r}", names)


def _check_size(handler: str, options: Offload, message: Message) -> None:
    """Find out here what RabbitMQ would refuse after the emit; a tracked payload stays in the database."""
    size = len(message.payload or "")
    if size > MOST_BYTES and options.delivery not in TRACKED and driver_of(current_app()) == AMQP:
        why = (
            f"its payload has {size} bytes, and RabbitMQ takes {MOST_BYTES}; use a tracked delivery, or entity='reload'"
        )
        raise PayloadError("what was emitted", "payload", why, [handler])


def _check_call(handler: str, options: Offload, call: Call) -> None:
    """Find out here, and not in the worker, that a handler does not take these arguments."""
    if options.typing is False:
        return
    try:
        header(declared[handler].function)(call.sender, *call.args, **call.kwargs)
    except TypeError as error:
        raise EmitError(f"handler {handler} does not take what was emitted: {error}") from error
