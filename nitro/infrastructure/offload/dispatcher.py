"""The dispatcher: makes one task message of each offloaded handler and publishes the messages as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from celery import Celery

from nitro.errors import DispatchError, EmitError, PayloadError
from nitro.infrastructure import scope
from nitro.infrastructure.database import Commits, Transaction, commit_for, flush_async
from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.handler import Handler, identity_of
from nitro.infrastructure.events.ports import Call
from nitro.infrastructure.failpoints import failpoint
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.broker import AMQP, driver_of, is_embedded
from nitro.infrastructure.offload.conf import read_setting
from nitro.infrastructure.offload.declarations import argument_checker, declarations_by_name, declare
from nitro.infrastructure.offload.envelope import TRACKED_DELIVERIES, Envelope, TaskMessage, delivery_id
from nitro.infrastructure.offload.options import DeliveryGuarantee, EntityMode, Offload
from nitro.infrastructure.offload.ports import DatabaseCommit, current_outbox
from nitro.infrastructure.offload.propagation import inject_headers
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.offload.publishing.queue import Batch, BatchStatus
from nitro.infrastructure.offload.report import report_json, report_of

MAX_AMQP_PAYLOAD_BYTES = 16 * 1024 * 1024
"""Bytes of an untracked payload over RabbitMQ: the default of its `max_message_size` since 4.0."""


class CeleryDispatcher:
    """Dispatches handlers through the current Celery app."""

    def declare(self, function: Callable[..., Any], name: str, offload: object) -> Offload:
        """Checks and registers an offloaded function, and returns its options."""
        return declare(function, name, offload)

    def dispatch(
        self, emission: Emission, call: Call, handlers: Sequence[Handler], commit: scope.Commit | None
    ) -> Callable[[], None]:
        """Makes the messages, writes the rows of tracked ones, and returns the function that publishes the messages.

        The payload is serialised once for all handlers with the same `entity=`. Without a commit to wait for, the
        returned function writes and commits the rows.

        Raises:
            PayloadError: a value cannot be serialised; names the handlers.
            EmitError: a handler does not take these arguments.
            OutboxError: a row cannot be written.
        """
        app = current_app()
        messages = _task_messages(emission, call, handlers, _celery_causes(app))
        emission.offloaded.update({message.handler: message.task_id for message in messages})
        if any(message.is_tracked for message in messages):
            _check_sender_id(call.sender, messages)
            report = report_json(report_of(emission))
            for message in messages:
                message.report = report
        if read_setting(app, "task_always_eager"):
            return partial(_run_eagerly, app, messages)
        if commit is None:
            return partial(_store_and_publish, app, emission.event, messages)
        return partial(_publish, app, emission.event, _store_tracked(app, messages, cast(DatabaseCommit, commit)))

    def find_commit(self, call: Call, *, flush: bool = False, reading: bool = False) -> Transaction | Commits | None:
        """Returns the commit that this emit waits for, or None.

        Raises:
            TransactionError: its instances are in sessions of two databases, or in two sessions that both write.
        """
        return commit_for(_emitted_values(call), flush=flush, reading=reading)

    async def flush(self, call: Call) -> None:
        """Flushes pending instances of the call and reads expired columns, for sessions that must be awaited."""
        await flush_async(_emitted_values(call))

    def payload_sizes(self, call: Call, handlers: Sequence[Handler]) -> list[int]:
        """Returns the payload size in bytes that `dispatch` would send to each handler.

        Raises:
            PayloadError: a value cannot be serialised.
        """
        messages = _task_messages(Emission.of(""), call, handlers, {})
        return [len(message.envelope.payload or "") for message in messages]


def _emitted_values(call: Call) -> tuple[object, ...]:
    return call.sender, *call.args, *call.kwargs.values()


def _store_and_publish(app: Celery, event: str, messages: Sequence[TaskMessage]) -> None:
    """Writes the rows of tracked messages in a transaction of their own, then publishes.

    Raises:
        DispatchError: untracked messages can neither be published nor stored; names their handlers.
        OutboxError: a row cannot be written; nothing was published.
    """
    _publish(app, event, _store_tracked(app, messages, None))


def _store_tracked(app: Celery, messages: Sequence[TaskMessage], commit: DatabaseCommit | None) -> list[TaskMessage]:
    """Writes rows for tracked messages and returns the messages to publish after the commit."""
    tracked = [message for message in messages if message.is_tracked]
    to_publish = current_outbox().store(app, tracked, commit, queued=publisher.is_ready) if tracked else []
    return [message for message in messages if not message.is_tracked or message in to_publish]


def _publish(app: Celery, event: str, messages: Sequence[TaskMessage]) -> None:
    """Publishes the messages as one batch, and waits a moment for the outcome if there are untracked ones."""
    failpoint("committed")
    if not messages:
        return
    untracked = [message for message in messages if not message.is_tracked]
    if is_embedded(app):  # such a broker cannot block
        _store_or_raise(event, untracked, publisher.publish_here(app, messages, _requeue))
    elif untracked:
        _store_or_raise(event, untracked, publisher.publish(app, messages, _requeue))
    else:
        publisher.enqueue(app, messages, _requeue)


def _requeue(batch: Batch) -> None:
    current_outbox().requeue_unconfirmed(batch)


def _store_or_raise(event: str, untracked: Sequence[TaskMessage], batch: Batch) -> None:
    """Stores unconfirmed untracked messages where their `delivery=` allows it, else raises.

    Raises:
        DispatchError: messages can neither be published nor stored; names their handlers.
    """
    status = batch.status
    if status == "sent":
        return
    error = batch.error or TimeoutError("the broker has not answered in time")
    unconfirmed = [message for message in untracked if message in batch.unconfirmed]
    storable = [
        message for message in unconfirmed if message.may_store and (status == "unsent" or _may_repeat(status, message))
    ]
    failed = [message.handler for message in unconfirmed if message not in storable]
    if storable:
        try:
            current_outbox().store(batch.app, storable, None, queued=False)
        except Exception as store_error:  # noqa: BLE001  # raised with the names of all undispatched handlers
            raise DispatchError(event, [message.handler for message in unconfirmed], store_error) from error
    if failed:
        raise DispatchError(event, failed, error) from error


def _may_repeat(status: BatchStatus, message: TaskMessage) -> bool:
    return status in ("unknown", "sending") and message.delivery == "broker"


def _run_eagerly(app: Celery, messages: Sequence[TaskMessage]) -> None:
    """Runs the handlers here, for `task_always_eager`; nothing is stored or published."""
    for message in messages:
        envelope, options = message.envelope, message.options
        app.tasks[message.handler].apply_async((), envelope.kwargs(message.handler), task_id=message.task_id, **options)


def _offload_of(handler: Handler) -> Offload:
    assert isinstance(handler.offload, Offload)
    return handler.offload


def _task_messages(
    emission: Emission, call: Call, handlers: Sequence[Handler], causes: dict[str, str]
) -> list[TaskMessage]:
    """Returns a message per handler; handlers with the same `entity=` share one serialised payload."""
    envelopes: dict[str, Envelope] = {}
    propagated_headers = inject_headers(emission)
    messages = []
    for handler in handlers:
        options = _offload_of(handler)
        _check_arguments(handler.name, options, call)
        mode = options.entity
        envelope = envelopes.get(mode)
        if envelope is None:
            envelope = envelopes[mode] = _envelope_for(emission, call, mode, handlers)
        _check_payload_size(handler.name, options, envelope)
        messages.append(
            TaskMessage(
                handler=handler.name,
                task_id=delivery_id(emission.id, handler.name),
                envelope=envelope,
                delivery=cast(DeliveryGuarantee, options.delivery),
                mode=mode,
                options={**options.message_options, **causes},
                propagated_headers=propagated_headers,
                may_store=options.broker_down == "store",
            )
        )
    return messages


def _envelope_for(emission: Emission, call: Call, mode: EntityMode, handlers: Sequence[Handler]) -> Envelope:
    try:
        return Envelope.of(emission, call, mode)
    except PayloadError as error:
        names = [handler.name for handler in handlers if _offload_of(handler).entity == mode]
        raise PayloadError(error.argument, error.kind, error.why, names) from error


def _celery_causes(app: Celery) -> dict[str, str]:
    """Returns `root_id` and `parent_id` for the messages when a Celery task emits, else nothing."""
    task = app.current_worker_task
    if task is None:
        return {}
    request = task.request
    causes = {"root_id": request.root_id or request.id, "parent_id": request.id}
    return {name: task_id for name, task_id in causes.items() if task_id}


def _check_sender_id(sender: object, messages: Sequence[TaskMessage]) -> None:
    """Raises PayloadError if the database cannot store the sender's id; every database can store ASCII."""
    identity = identity_of(sender)
    if identity is None or (key := str(identity[1])).isascii() or current_outbox().can_store(key):
        return
    names = [message.handler for message in messages if message.is_tracked]
    raise PayloadError("sender", type(sender).__name__, f"the database cannot store its id {key!r}", names)


def _check_payload_size(handler: str, options: Offload, envelope: Envelope) -> None:
    """Raises PayloadError for an untracked payload that RabbitMQ would refuse after the emit."""
    size = len(envelope.payload or "")
    if (
        size > MAX_AMQP_PAYLOAD_BYTES
        and options.delivery not in TRACKED_DELIVERIES
        and driver_of(current_app()) == AMQP
    ):
        why = (
            f"its payload has {size} bytes, and RabbitMQ takes {MAX_AMQP_PAYLOAD_BYTES}; "
            "use a tracked delivery, or entity='reload'"
        )
        raise PayloadError("what was emitted", "payload", why, [handler])


def _check_arguments(handler: str, options: Offload, call: Call) -> None:
    """Raises EmitError if a handler does not take these arguments, so that no worker finds out first."""
    if options.typing is False:
        return
    try:
        argument_checker(declarations_by_name[handler].function)(call.sender, *call.args, **call.kwargs)
    except TypeError as error:
        raise EmitError(f"handler {handler} does not take what was emitted: {error}") from error
