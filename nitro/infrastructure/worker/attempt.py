"""The run of a tracked delivery: claims it, runs its handler, and closes it."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from billiard.common import terminate_handler_fired
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.time import maybe_iso8601
from sqlalchemy import exc

from nitro.errors import DeliveryLost
from nitro.infrastructure import greenlets
from nitro.infrastructure.failpoints import failpoint
from nitro.infrastructure.logs import describe_error, escape_text, get_logger, split_traceback
from nitro.infrastructure.offload.envelope import Envelope
from nitro.infrastructure.offload.options import in_utc
from nitro.infrastructure.outbox import claims
from nitro.infrastructure.outbox.claims import Claim, Refusal
from nitro.infrastructure.outbox.schema import CLOSED_STATES
from nitro.infrastructure.outbox.texts import to_storable_ascii
from nitro.infrastructure.worker.identity import runner_id

logger = get_logger("nitro.worker")

T = TypeVar("T")

DATABASE_DOWN_ERRORS = (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError)
"""Errors that a database raises when it is down, in recovery, or out of connections."""
RETRY_SECONDS = 0.5
"""Seconds between two attempts to reach a database that is down."""
MAX_ERROR_CHARACTERS = 4000
"""Characters of the text of an error; at least half of them are for its message."""
OMISSION_LINE = "  …\n"
"""The line in place of omitted text. Its indent keeps log parsers from reading it as the exception line."""


class DeliverySuperseded(Ignore):  # type: ignore[misc]  # celery has no types
    """Raised when another run has claimed the delivery, or it was cancelled: the outcome of this run is ignored."""

    @classmethod
    def from_lost(cls, lost: DeliveryLost) -> DeliverySuperseded:
        """Logs the lost delivery as a warning, and returns the error that Celery ignores."""
        logger.warning("%s", lost)
        return cls(str(lost))


current_claim: ContextVar[Claim | None] = ContextVar("nitro_claim", default=None)
"""The tracked run of this context."""


def run_tracked(task: Any, envelope: Envelope, run: Callable[[], Any]) -> Any:
    """Runs a tracked delivery, and closes its row.

    Raises:
        Ignore: the delivery cannot be claimed, or is no longer this run's.
        Retry: the handler failed, and runs again when its row is due.
        Exception: the handler failed for the last time.
    """
    key = (envelope.emission, task.name, runner_id())
    claim = _retry_while_database_down(partial(claims.claim, *key), partial(claims.undo_claim, *key))
    if isinstance(claim, Refusal):
        _handle_refusal(claim, envelope, task)
        raise Ignore(f"{task.name} is {claim.state or 'unknown'}")
    failpoint("claimed by a worker")
    task.request.retries = claim.retries
    token = current_claim.set(claim)
    try:
        return _run_and_close(claim, run)
    finally:
        current_claim.reset(token)


def _run_and_close(run: Claim, body: Callable[[], Any]) -> Any:
    try:
        result = body()
    except Retry as retry:
        _close_failed(run, partial(_reschedule, run, retry), retry.exc or retry)
        raise
    except Reject as rejected:
        error, delay = "rejected by its handler", float(2 ** min(run.retries, 9))
        reschedule = partial(claims.reschedule, run, delay, error)
        _close(run, reschedule if rejected.requeue else partial(claims.dead_letter, run, error))
        raise Ignore(error) from rejected
    except DeliverySuperseded:
        raise
    except Ignore:
        _close(run, partial(claims.finish, run))
        raise
    except Exception as error:
        _close_failed(run, partial(claims.dead_letter, run), error)
        raise
    except BaseException as error:
        if terminate_handler_fired() or greenlets.is_gevent_timeout(error):
            raise  # the main process or gevent's pool has ended this run, and records the reason
        claims.record_losses(claims.is_run_in(run.emission, run.handler, runner_id()), "its process was ended")
        raise
    failpoint("handled")
    if not run.closed:
        _close(run, partial(claims.finish, run))
    return result


def _close(run: Claim, close: Callable[[], None]) -> None:
    """Closes a run; waits for a database that is down.

    Raises:
        DeliverySuperseded: another run has claimed the delivery, or it was cancelled.
        Exception: the closing failed otherwise, and the delivery is a dead letter.
    """
    try:
        _close_unless_superseded(close)
    except DeliverySuperseded:
        raise
    except Exception as error:
        reason = to_storable_ascii(f"its run could not be closed: {_error_text(error)}")
        _close_unless_superseded(partial(claims.dead_letter, run, reason))
        raise


def _close_unless_superseded(close: Callable[[], None]) -> None:
    try:
        _retry_while_database_down(close)
    except DeliveryLost as lost:
        raise DeliverySuperseded.from_lost(lost) from lost


def _close_failed(run: Claim, close: Callable[[str], None], error: BaseException) -> None:
    """Closes a run with the text of its error; in ASCII if the database refuses the text."""
    text = _error_text(error)

    def close_with_text() -> None:
        try:
            close(text)
        except (exc.DataError, UnicodeError) as refused:
            logger.warning("the database refuses the text of an error: %s", refused)
            close(to_storable_ascii(text))

    _close(run, close_with_text)


def _reschedule(run: Claim, retry: Retry, error: str) -> None:
    claims.reschedule(run, _retry_delay(retry), error)


def _retry_while_database_down(operation: Callable[[], T], before_retry: Callable[[], object] = lambda: None) -> T:
    """Returns the result of an operation on the database; retries it while the database is down.

    Args:
        before_retry: undoes the effect that a failed attempt may have had.
    """
    failed = False
    while True:
        try:
            if failed:
                before_retry()
            return operation()
        except SoftTimeLimitExceeded:
            logger.warning("a soft time limit is ignored: the handler was not running when it was reached")
            failed = True
        except DATABASE_DOWN_ERRORS as error:
            logger.warning("the database is down, and a delivery waits for it: %s", error)
            failed = True
            time.sleep(RETRY_SECONDS)


def _handle_refusal(refusal: Refusal, envelope: Envelope, task: Any) -> None:
    names = (escape_text(task.name), escape_text(envelope.emission))  # a message may name anything
    if refusal.state is not None:
        level = logging.DEBUG if refusal.state in CLOSED_STATES else logging.INFO
        logger.log(level, "%s for emission %s is %s already", *names, refusal.state)
        return
    reason = "its message has no row here: does this worker use the database of the emitter?"
    logger.error("%s for emission %s is parked: %s", *names, reason)
    facts = {"event": envelope.event, "sender": envelope.sender, "root": envelope.root, "parent": envelope.parent}
    _retry_while_database_down(
        partial(claims.dead_letter_without_row, envelope.emission, task.name, task.request.id, facts, reason)
    )


def _retry_delay(retry: Retry) -> float:
    """Returns the seconds until a retry, from any value that Celery accepts as `eta` or `countdown`."""
    when = maybe_iso8601(retry.when) if isinstance(retry.when, str) else retry.when
    if isinstance(when, datetime):
        return max(0.0, (in_utc(when) - datetime.now(UTC)).total_seconds())
    return when.total_seconds() if isinstance(when, timedelta) else float(when or 0)


def _error_text(error: BaseException) -> str:
    """Returns the traceback of an error; a long one is cut to the last frames and to both ends of the message."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001  # `__str__` of the user's class may raise anything
        text = describe_error(error)
    if len(text) <= MAX_ERROR_CHARACTERS:
        return text
    frames, message = split_traceback(text)
    max_frames_characters = MAX_ERROR_CHARACTERS // 2
    if len(frames) > max_frames_characters:
        frames = OMISSION_LINE + frames[-max_frames_characters:].partition("\n")[2]
    if len(message) > MAX_ERROR_CHARACTERS - len(frames):
        half = (MAX_ERROR_CHARACTERS - len(frames) - len(OMISSION_LINE) - 1) // 2
        end = message[-half:]
        whole_lines = end.partition("\n")[2] or end  # part of a line could pass for a frame
        message = f"{message[:half]}\n{OMISSION_LINE}{whole_lines}"
    return frames + message
