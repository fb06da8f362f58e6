"""Execution: from a task message to the handler's outcome."""

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
from nitro.infrastructure.logs import facts, logger_named, plain, told
from nitro.infrastructure.offload.carriers import taken
from nitro.infrastructure.offload.codec import Payload, decode
from nitro.infrastructure.offload.declarations import Declaration
from nitro.infrastructure.offload.delivery import Delivery, delivering
from nitro.infrastructure.offload.message import Message, delivery_id
from nitro.infrastructure.outbox.claims import Claim, finish
from nitro.infrastructure.repository import find
from nitro.infrastructure.threads import Lock
from nitro.infrastructure.worker.attempt import TakenOver, claimed
from nitro.infrastructure.worker.coroutines import run_coroutine
from nitro.infrastructure.worker.results import Progress, storable

logger = logger_named("nitro.worker")

_one_async = Lock()


def execute(task: Any, declaration: Declaration, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a handler for one task message, which its request holds; return what the result backend will hold.

    Raises:
        PayloadUnreadable: the payload cannot be rebuilt.
        EntityVanished: a row is gone and the handler has `on_missing="fail"`.
        Exception: whatever the handler raises.
    """
    message: Message | None = None if task.request.called_directly else task.request.nitro
    run = claimed.get() if message is not None and message.payload is None else None
    delivery = _delivery(task.request, declaration, message, run)
    with (
        _delivered(delivery),
        taken(task.request.headers or {}, delivery),
        _reported(delivery, message.sender if message is not None else ""),
        background.settling(),
        _promised(run, declaration),
    ):
        if message is not None:
            payload = _payload(message if run is None else replace(message, payload=run.payload), declaration)
            if payload is None:
                return None
            args = (*args, *(() if message.bare else (payload.sender,)), *payload.args)
            kwargs = payload.kwargs
        result = _run(declaration, args, kwargs, Progress(task))
    return result if task.request.called_directly else storable(result, declaration.name)


@contextmanager
def _reported(delivery: Delivery, sender: str) -> Iterator[None]:
    """A line about a run that fails; Celery's own has the traceback."""
    try:
        yield
    except (Ignore, Reject, Retry):
        raise
    except Exception as error:
        known = {"handler": delivery.handler, "event": delivery.event or "", "sender": sender}
        texts = map(plain, (*known.values(), told(error)))
        where = {"emission": delivery.emission, "attempt": delivery.attempt}
        line = "handler %s of event %s by %s failed: %s (emission %s, attempt %d)"
        logger.warning(line, *texts, *where.values(), extra=facts(**known, **where))
        raise


@contextmanager
def _promised(run: Claim | None, declaration: Declaration) -> Iterator[None]:
    """Exactly once: a transaction around the handler that closes its row too. Otherwise nothing.

    Of async handlers one at a time has such a transaction: a second one that waited for a row of the first's would
    keep the loop from ever going on with the first.
    """
    if run is None or run.promise != "exactly-once":
        yield
        return
    alone = _one_async if kind_of(declaration.function).startswith("async") else nullcontext()
    try:
        with alone, transaction() as session:
            yield
            finish(run, connection_of(session))
            failpoint("committing")
        run.closed = True
    except DeliveryLost as lost:
        raise TakenOver.told(lost) from lost


def _payload(message: Message, declaration: Declaration) -> Payload | None:
    """What the handler is called with, or None when a row is gone and it wants to be skipped then."""
    try:
        return decode(message.payload or "", load=find.get)
    except EntityVanished as error:
        if declaration.offload.on_missing == "fail":
            raise
        logger.info("handler %s is skipped: %s", plain(declaration.name), error)
        return None


def _delivery(request: Any, declaration: Declaration, message: Message | None, run: Claim | None) -> Delivery:
    emission = message.emission if message else Emission.of("").id
    hard, soft = request.timelimit or (None, None)
    limit = soft or hard or declaration.offload.soft_time_limit or declaration.offload.time_limit
    return Delivery(
        emission=emission,
        root=message.root if message else None,
        parent=message.parent if message else None,
        event=message.event if message else None,
        handler=declaration.name,
        attempt=(request.retries or 0) + 1 if run is None else run.attempt,
        idempotency_key=delivery_id(emission, declaration.name),
        deadline=datetime.now(UTC) + timedelta(seconds=limit) if limit else None,
    )


@contextmanager
def _delivered(delivery: Delivery) -> Iterator[None]:
    """Make the delivery known to the handler, and the cause of what it emits."""
    token, cause = delivering.set(delivery), scope.enter_task(delivery)
    try:
        yield
    finally:
        scope.leave_task(cause)
        delivering.reset(token)


def _run(declaration: Declaration, args: tuple[Any, ...], kwargs: dict[str, Any], progress: Progress) -> Any:
    """The result of a handler of any kind; what a generator yields is progress, and all of it the result."""
    made = declaration.function(*args, **kwargs)
    if isinstance(made, GeneratorType):
        return [progress.report(value) for value in made]
    if isinstance(made, CoroutineType):
        return run_coroutine(made, declaration.name)
    if isinstance(made, AsyncGeneratorType):
        return run_coroutine(progress.drain(made), declaration.name)
    return made
