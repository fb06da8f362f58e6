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
from nitro.infrastructure.logs import logger_named, parted, plain
from nitro.infrastructure.logs import told as said_of
from nitro.infrastructure.offload.message import Message
from nitro.infrastructure.offload.options import in_utc
from nitro.infrastructure.outbox import claims
from nitro.infrastructure.outbox.claims import Claim, Refusal
from nitro.infrastructure.outbox.tables import CLOSED
from nitro.infrastructure.outbox.texts import surely_storable
from nitro.infrastructure.worker.identity import here

logger = logger_named("nitro.worker")

T = TypeVar("T")

AWAY = (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError)
"""What a database raises that is away, in recovery, or has no connection left."""
AGAIN = 0.5
"""Seconds between two tries to reach a database that is away."""
LONGEST_ERROR = 4000
"""Characters of an error, of which half are left to its message."""
OMITTED = "  …\n"
"""Indented, so that it passes for no exception."""


class TakenOver(Ignore):  # type: ignore[misc]  # celery has no types
    """Another run has taken over a delivery, or it was cancelled: whatever this one did is not what counts."""

    @classmethod
    def told(cls, lost: DeliveryLost) -> TakenOver:
        """The same for Celery, with a warning."""
        logger.warning("%s", lost)
        return cls(str(lost))


claimed: ContextVar[Claim | None] = ContextVar("nitro_claim", default=None)
"""The tracked run of this context."""


def attempt(task: Any, message: Message, run: Callable[[], Any]) -> Any:
    """Run a tracked delivery and close its row, whatever becomes of it.

    Raises:
        Ignore: it is not to be run, or not any more.
        Retry: it failed, and runs again when its row is due.
        Exception: it failed for good.
    """
    mine = here()
    row = (message.emission, task.name, mine)
    taken = _persistently(partial(claims.claim, *row), partial(claims.unclaim, *row))
    if isinstance(taken, Refusal):
        _refuse(taken, message, task)
        raise Ignore(f"{task.name} is {taken.state or 'unknown'}")
    failpoint("claimed by a worker")
    task.request.retries = taken.retries
    token = claimed.set(taken)
    try:
        return _closed(taken, run)
    finally:
        claimed.reset(token)


def _closed(run: Claim, body: Callable[[], Any]) -> Any:
    try:
        result = body()
    except Retry as retry:
        _close_failed(run, partial(_put_off, run, retry), retry.exc or retry)
        raise
    except Reject as rejected:
        error, pause = "rejected by its handler", float(2 ** min(run.retries, 9))
        again = partial(claims.put_off, run, pause, error)
        _close(run, again if rejected.requeue else partial(claims.bury, run, error))
        raise Ignore(error) from rejected
    except TakenOver:
        raise
    except Ignore:
        _close(run, partial(claims.finish, run))
        raise
    except Exception as error:
        _close_failed(run, partial(claims.bury, run), error)
        raise
    except BaseException as error:
        if terminate_handler_fired() or greenlets.is_timeout(error):
            raise  # the main process, or gevent's pool, has ended this one, and knows why
        claims.lose(claims.run_in(run.emission, run.handler, here()), "its process was ended")
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
        _close_or_lose(close)
    except TakenOver:
        raise
    except Exception as error:
        why = surely_storable(f"its run could not be closed: {_told(error)}")
        _close_or_lose(partial(claims.bury, run, why))
        raise


def _close_or_lose(close: Callable[[], None]) -> None:
    try:
        _persistently(close)
    except DeliveryLost as lost:
        raise TakenOver.told(lost) from lost


def _close_failed(run: Claim, close: Callable[[str], None], error: BaseException) -> None:
    """Close a run with its error: as the database keeps it, or if it refuses that one all the same, in ASCII."""
    text = _told(error)

    def close_somehow() -> None:
        try:
            close(text)
        except (exc.DataError, UnicodeError) as refused:
            logger.warning("the database refuses the text of an error: %s", refused)
            close(surely_storable(text))

    _close(run, close_somehow)


def _put_off(run: Claim, again: Retry, error: str) -> None:
    claims.put_off(run, _seconds(again), error)


def _persistently(act: Callable[[], T], before_again: Callable[[], object] = lambda: None) -> T:
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
        except AWAY as error:
            logger.warning("the database is away, and a delivery waits for it: %s", error)
            failed = True
            time.sleep(AGAIN)


def _refuse(refusal: Refusal, message: Message, task: Any) -> None:
    which = (plain(task.name), plain(message.emission))  # a message may name anything
    if refusal.state is not None:
        level = logging.DEBUG if refusal.state in CLOSED else logging.INFO
        logger.log(level, "%s for emission %s is %s already", *which, refusal.state)
        return
    why = "its message has no row here: does this worker use the database of the emitter?"
    logger.error("%s for emission %s is parked: %s", *which, why)
    facts = {"event": message.event, "sender": message.sender, "root": message.root, "parent": message.parent}
    _persistently(partial(claims.park, message.emission, task.name, task.request.id, facts, why))


def _seconds(again: Retry) -> float:
    """Returns the seconds until a retry, from what Celery takes for `eta` and `countdown`."""
    when = maybe_iso8601(again.when) if isinstance(again.when, str) else again.when
    if isinstance(when, datetime):
        return max(0.0, (in_utc(when) - datetime.now(UTC)).total_seconds())
    return when.total_seconds() if isinstance(when, timedelta) else float(when or 0)


def _told(error: BaseException) -> str:
    """An error and where it was raised, for whoever looks at the row; of a long one the last frames and both ends."""
    try:
        told = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001  # of the user's class: an error that cannot be told in full is an error still
        told = said_of(error)
    if len(told) <= LONGEST_ERROR:
        return told
    frames, own = parted(told)
    most = LONGEST_ERROR // 2
    if len(frames) > most:
        frames = OMITTED + frames[-most:].partition("\n")[2]
    if len(own) > LONGEST_ERROR - len(frames):
        half = (LONGEST_ERROR - len(frames) - len(OMITTED) - 1) // 2
        own = f"{own[:half]}\n{OMITTED}{own[-half:]}"
    return frames + own
