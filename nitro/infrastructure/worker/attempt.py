"""Attempt: one run of a tracked delivery. Claim it, run its handler, close it."""

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
from nitro.infrastructure.logs import describe_error as said_of
from nitro.infrastructure.logs import escape_text, get_logger, split_traceback
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
"""What a database raises that is away, in recovery, or has no connection left."""
RETRY_SECONDS = 0.5
"""Seconds between two tries to reach a database that is away."""
MAX_ERROR_CHARACTERS = 4000
"""Characters of an error, of which half are left to its message."""
OMISSION_LINE = "  …\n"
"""Indented, so that it passes for no exception."""


class DeliverySuperseded(Ignore):  # type: ignore[misc]  # celery has no types
    """Another run has taken over a delivery, or it was cancelled: whatever this one did is not what counts."""

    @classmethod
    def from_lost(cls, lost: DeliveryLost) -> DeliverySuperseded:
        """The same for Celery, with a warning."""
        logger.warning("%s", lost)
        return cls(str(lost))


current_claim: ContextVar[Claim | None] = ContextVar("nitro_claim", default=None)
"""The tracked run of this context."""


def run_tracked(task: Any, envelope: Envelope, run: Callable[[], Any]) -> Any:
    """Run a tracked delivery and close its row, whatever becomes of it.

    Raises:
        Ignore: it is not to be run, or not any more.
        Retry: it failed, and runs again when its row is due.
        Exception: it failed for good.
    """
    mine = runner_id()
    row = (envelope.emission, task.name, mine)
    taken = _retry_while_database_down(partial(claims.claim, *row), partial(claims.undo_claim, *row))
    if isinstance(taken, Refusal):
        _handle_refusal(taken, envelope, task)
        raise Ignore(f"{task.name} is {taken.state or 'unknown'}")
    failpoint("claimed by a worker")
    task.request.retries = taken.retries
    token = current_claim.set(taken)
    try:
        return _run_and_close(taken, run)
    finally:
        current_claim.reset(token)


def _run_and_close(run: Claim, body: Callable[[], Any]) -> Any:
    try:
        result = body()
    except Retry as retry:
        _close_failed(run, partial(_reschedule, run, retry), retry.exc or retry)
        raise
    except Reject as rejected:
        error, pause = "rejected by its handler", float(2 ** min(run.retries, 9))
        again = partial(claims.reschedule, run, pause, error)
        _close(run, again if rejected.requeue else partial(claims.dead_letter, run, error))
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
            raise  # the main process, or gevent's pool, has ended this one, and knows why
        claims.record_losses(claims.is_run_in(run.emission, run.handler, runner_id()), "its process was ended")
        raise
    failpoint("handled")
    if not run.closed:
        _close(run, partial(claims.finish, run))
    return result


def _close(run: Claim, close: Callable[[], None]) -> None:
    """Close a run, however long the database is away.

    Raises:
        TakenOver: another run has taken over.
        Exception: whatever else went wrong with that, which the delivery has died of.
    """
    try:
        _close_unless_superseded(close)
    except DeliverySuperseded:
        raise
    except Exception as error:
        why = to_storable_ascii(f"its run could not be closed: {_error_text(error)}")
        _close_unless_superseded(partial(claims.dead_letter, run, why))
        raise


def _close_unless_superseded(close: Callable[[], None]) -> None:
    try:
        _retry_while_database_down(close)
    except DeliveryLost as lost:
        raise DeliverySuperseded.from_lost(lost) from lost


def _close_failed(run: Claim, close: Callable[[str], None], error: BaseException) -> None:
    """Close a run with its error: as the database keeps it, or if it refuses that one all the same, in ASCII."""
    text = _error_text(error)

    def close_somehow() -> None:
        try:
            close(text)
        except (exc.DataError, UnicodeError) as refused:
            logger.warning("the database refuses the text of an error: %s", refused)
            close(to_storable_ascii(text))

    _close(run, close_somehow)


def _reschedule(run: Claim, again: Retry, error: str) -> None:
    claims.reschedule(run, _retry_delay(again), error)


def _retry_while_database_down(act: Callable[[], T], before_again: Callable[[], object] = lambda: None) -> T:
    """What an act on the database gives, tried until the database is there.

    Args:
        before_again: undoes what a try may have done whose outcome is unknown.
    """
    failed = False
    while True:
        try:
            if failed:
                before_again()
            return act()
        except SoftTimeLimitExceeded:
            logger.warning("the soft time limit came when the handler was not running, and is ignored")
            failed = True
        except DATABASE_DOWN_ERRORS as error:
            logger.warning("the database is away, and a delivery waits for it: %s", error)
            failed = True
            time.sleep(RETRY_SECONDS)


def _handle_refusal(refusal: Refusal, envelope: Envelope, task: Any) -> None:
    which = (escape_text(task.name), escape_text(envelope.emission))  # a message may name anything
    if refusal.state is not None:
        level = logging.DEBUG if refusal.state in CLOSED_STATES else logging.INFO
        logger.log(level, "%s for emission %s is %s already", *which, refusal.state)
        return
    why = "its message has no row here: does this worker use the database of the emitter?"
    logger.error("%s for emission %s is parked: %s", *which, why)
    facts = {"event": envelope.event, "sender": envelope.sender, "root": envelope.root, "parent": envelope.parent}
    _retry_while_database_down(
        partial(claims.dead_letter_without_row, envelope.emission, task.name, task.request.id, facts, why)
    )


def _retry_delay(again: Retry) -> float:
    """Returns the seconds until a retry, from what Celery takes for `eta` and `countdown`."""
    when = maybe_iso8601(again.when) if isinstance(again.when, str) else again.when
    if isinstance(when, datetime):
        return max(0.0, (in_utc(when) - datetime.now(UTC)).total_seconds())
    return when.total_seconds() if isinstance(when, timedelta) else float(when or 0)


def _error_text(error: BaseException) -> str:
    """An error and where it was raised, for whoever looks at the row; of a long one the last frames and both ends."""
    try:
        told = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001  # of the user's class: an error that cannot be told in full is an error still
        told = said_of(error)
    if len(told) <= MAX_ERROR_CHARACTERS:
        return told
    frames, own = split_traceback(told)
    most = MAX_ERROR_CHARACTERS // 2
    if len(frames) > most:
        frames = OMISSION_LINE + frames[-most:].partition("\n")[2]
    if len(own) > MAX_ERROR_CHARACTERS - len(frames):
        half = (MAX_ERROR_CHARACTERS - len(frames) - len(OMISSION_LINE) - 1) // 2
        end = own[-half:]
        own = (
            f"{own[:half]}\n{OMISSION_LINE}{end.partition(chr(10))[2] or end}"  # part of a line could pass for a frame
        )
    return frames + own
