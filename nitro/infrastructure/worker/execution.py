"""Execution of a handler for a task message: decodes the payload, calls the handler, and returns its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from nitro.errors import DeliveryLost, EntityVanished
from nitro.infrastructure import scope
from nitro.infrastructure.database import connection_of, transaction
from nitro.infrastructure.events import Emission, background
from nitro.infrastructure.events.handler import kind_of
from nitro.infrastructure.failpoints import failpoint
from nitro.infrastructure.logs import describe_error, escape_text, get_logger, log_extra
from nitro.infrastructure.offload.codec import Payload, decode
from nitro.infrastructure.offload.declarations import Declaration
from nitro.infrastructure.offload.delivery import Delivery, running_delivery
from nitro.infrastructure.offload.envelope import Envelope, delivery_id
from nitro.infrastructure.offload.propagation import extract_context
from nitro.infrastructure.outbox.claims import Claim, finish
from nitro.infrastructure.repository import find
from nitro.infrastructure.threads import ForkSafeLock
from nitro.infrastructure.worker.attempt import DeliverySuperseded, current_claim
from nitro.infrastructure.worker.loop import run_coroutine
from nitro.infrastructure.worker.results import Progress, json_result

logger = get_logger("nitro.worker")

_async_transaction_lock = ForkSafeLock()


def execute(task: Any, declaration: Declaration, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a handler for the message of its task's request, and returns the result for the result backend.

    Raises:
        PayloadUnreadable: the payload cannot be rebuilt.
        EntityVanished: the row of an entity is deleted, and the handler has `on_missing="fail"`.
        Exception: the handler raises it.
    """
    envelope: Envelope | None = None if task.request.called_directly else task.request.nitro
    run = current_claim.get() if envelope is not None and envelope.payload is None else None
    delivery = _make_delivery(task.request, declaration, envelope, run)
    with (
        _delivery_context(delivery),
        extract_context(task.request.headers or {}, delivery),
        _failures_logged(delivery, envelope.sender if envelope is not None else ""),
        background.collect_started_jobs(),
        _exactly_once_transaction(run, declaration),
    ):
        if envelope is not None:
            payload = _decode_payload(envelope if run is None else replace(envelope, payload=run.payload), declaration)
            if payload is None:
                return None
            args = (*args, *(() if envelope.bare else (payload.sender,)), *payload.args)
            kwargs = payload.kwargs
        result = _call_handler(declaration, args, kwargs, Progress(task))
    return result if task.request.called_directly else json_result(result, declaration.name)


@contextmanager
def _failures_logged(delivery: Delivery, sender: str) -> Iterator[None]:
    """Logs a failed run in one line; Celery logs the traceback."""
    try:
        yield
    except (Ignore, Reject, Retry):
        raise
    except Exception as error:
        names = {"handler": delivery.handler, "event": delivery.event or "", "sender": sender}
        texts = map(escape_text, (*names.values(), describe_error(error)))
        position = {"emission": delivery.emission, "attempt": delivery.attempt}
        line = "handler %s of event %s by %s failed: %s (emission %s, attempt %d)"
        logger.warning(line, *texts, *position.values(), extra=log_extra(**names, **position))
        raise


@contextmanager
def _exactly_once_transaction(run: Claim | None, declaration: Declaration) -> Iterator[None]:
    """Opens a transaction around an exactly-once handler, which closes the row too; does nothing for other handlers.

    Only one async handler at a time has such a transaction. A second one that waited for a row lock of the first would
    block the event loop, and the first could never release it.
    """
    if run is None or run.promise != "exactly-once":
        yield
        return
    lock = _async_transaction_lock if kind_of(declaration.function).startswith("async") else nullcontext()
    try:
        with lock, transaction() as session:
            yield
            finish(run, connection_of(session))
            failpoint("committing")
        run.closed = True
    except DeliveryLost as lost:
        raise DeliverySuperseded.from_lost(lost) from lost


def _decode_payload(envelope: Envelope, declaration: Declaration) -> Payload | None:
    """Returns sender and arguments; None when a row is deleted and the handler has `on_missing="skip"`."""
    try:
        return decode(envelope.payload or "", load=find.get)
    except EntityVanished as error:
        if declaration.offload.on_missing == "fail":
            raise
        logger.info("handler %s is skipped: %s", escape_text(declaration.name), error)
        return None


def _make_delivery(request: Any, declaration: Declaration, envelope: Envelope | None, run: Claim | None) -> Delivery:
    emission = envelope.emission if envelope else Emission.of("").id
    hard, soft = request.timelimit or (None, None)
    limit = soft or hard or declaration.offload.soft_time_limit or declaration.offload.time_limit
    return Delivery(
        emission=emission,
        root=envelope.root if envelope else None,
        parent=envelope.parent if envelope else None,
        event=envelope.event if envelope else None,
        handler=declaration.name,
        attempt=(request.retries or 0) + 1 if run is None else run.attempt,
        idempotency_key=delivery_id(emission, declaration.name),
        deadline=datetime.now(UTC) + timedelta(seconds=limit) if limit else None,
    )


@contextmanager
def _delivery_context(delivery: Delivery) -> Iterator[None]:
    """Sets `current_delivery()` for the handler, and the delivery as the cause of its emissions."""
    token, cause = running_delivery.set(delivery), scope.set_task_cause(delivery)
    try:
        yield
    finally:
        scope.reset_task_cause(cause)
        running_delivery.reset(token)


def _call_handler(declaration: Declaration, args: tuple[Any, ...], kwargs: dict[str, Any], progress: Progress) -> Any:
    """Returns the result of a handler of any kind; the values of a generator are reported, and returned as a list."""
    outcome = declaration.function(*args, **kwargs)
    if isinstance(outcome, GeneratorType):
        return [progress.report(value) for value in outcome]
    if isinstance(outcome, CoroutineType):
        return run_coroutine(outcome, declaration.name)
    if isinstance(outcome, AsyncGeneratorType):
        return run_coroutine(progress.collect(outcome), declaration.name)
    return outcome
