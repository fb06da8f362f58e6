"""The history of a delivery as workers write it, for any error of a handler."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select, update

from nitro.infrastructure.database import engine, write_connection
from nitro.infrastructure.events import Event, emit, emit_async, on
from nitro.infrastructure.logs import exception_line
from nitro.infrastructure.outbox import claims, operations, pending
from nitro.infrastructure.outbox.claims import Claim
from nitro.infrastructure.outbox.operations import DeliveryRecord
from nitro.infrastructure.outbox.schema import deliveries
from nitro.infrastructure.outbox.states import MAX_HISTORY_CHARACTERS
from nitro.infrastructure.worker.attempt import MAX_ERROR_CHARACTERS
from support.waiting import until

AT_ONCE = {"retry_backoff": False, "default_retry_delay": 0}
WORKER = "boot/1"
LONG = timedelta(milliseconds=30)
"""The run time of a handler, to distinguish the begin of a run from its end."""


@pytest.fixture
def shop(database_kind: str, evt: Event, app: Celery) -> Event:
    """An event with a tracked handler, on a database of each kind."""
    on(evt, name="shop.mail", offload={"queue": "nobody's"})(lambda sender: None)
    return evt


@pytest.fixture
def app_on(database_kind: str, app: Celery) -> Celery:
    """An app on a database of each kind."""
    return app


def entry() -> DeliveryRecord:
    """Returns the only delivery."""
    (only,) = operations.read_deliveries()
    return only


def run_of(event: Event) -> Claim:
    """Emits the event and returns the first run of its only delivery."""
    emit(event, "ada")
    return next_run()


def next_run() -> Claim:
    """Starts the next run of the only delivery."""
    with write_connection() as connection:
        connection.execute(update(deliveries).values(state="queued"))
    run = claims.claim(entry().emission, "shop.mail", WORKER)
    assert isinstance(run, Claim)
    return run


def why(*, runs: int = 1) -> list[str]:
    """Returns the reason of each run in the history."""
    history = entry().history
    assert len(history) == runs
    return [run.why for run in history]


def stored_history() -> str:
    """Returns the history as text, as it is stored in the row."""
    with engine().connect() as connection:
        return str(connection.scalar(select(deliveries.c.history)) or "")


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_each_run_that_failed_is_told_of(evt: Event, app_on: Celery, work: Callable[..., Any], delivery: str) -> None:
    """Each failed run is recorded with number, begin, end and exception line; the run that succeeded is not."""
    ran: list[datetime] = []

    @on(evt, name="shop.mail", offload={"delivery": delivery, **AT_ONCE})
    def mail(sender: str) -> None:
        ran.append(datetime.now(UTC))
        until(lambda: datetime.now(UTC) - ran[-1] > LONG)
        if len(ran) < 3:
            raise ConnectionError(f"no mail at {len(ran)}\nthe second line")

    work(app_on)
    begin = datetime.now(UTC)
    emit(evt, "ada")
    until(lambda: entry().state == "done")
    history = entry().history
    assert [(run.run, run.why) for run in history] == [
        (1, "ConnectionError: no mail at 1"),
        (2, "ConnectionError: no mail at 2"),
    ]
    slack = timedelta(milliseconds=5)  # of the database's clock
    for run, at in zip(history, ran, strict=False):
        assert run.started is not None
        assert begin - slack <= run.started <= at + slack
        assert at + LONG - slack <= run.ended <= ran[run.run] + slack
    assert entry().attempts == 3


@pytest.mark.parametrize("retries", [0, 2])
def test_the_run_that_failed_for_good_is_told_of_by_the_row_itself(
    evt: Event, app_on: Celery, work: Callable[..., Any], retries: int
) -> None:
    """The final failure is in the delivery's error with its traceback; the history has the earlier runs."""

    @on(evt, name="shop.mail", offload={"max_retries": retries, **AT_ONCE})
    def mail(sender: str) -> None:
        raise LookupError("no mail")

    work(app_on)
    emit(evt, "ada")
    until(lambda: entry().state == "dead")
    assert why(runs=retries) == ["LookupError: no mail"] * retries
    assert "in mail" in str(entry().error)


def test_a_run_whose_process_died_is_told_of(shop: Event) -> None:
    """A run whose process ended is recorded, including the run after which the delivery is a dead letter."""
    for run in range(1, claims.MAX_LOSSES + 1):
        _ = run_of(shop) if run == 1 else next_run()
        assert claims.record_losses(claims.is_run_of_worker("boot"), f"its worker died {run} times") == 1
    assert why(runs=claims.MAX_LOSSES) == [f"its worker died {run} times" for run in range(1, 6)]
    assert entry().state == "dead"


def test_what_was_no_run_is_not_told_of(shop: Event) -> None:
    """A lost message, or one that a worker did not know, is not recorded as a run."""
    emission = emit(shop, "ada")
    claims.requeue_unknown(emission.id, "shop.mail", 9, "unknown to the worker that took it")
    with write_connection() as connection:
        connection.execute(update(deliveries).values(state="queued", due_at=0.0, published_at=0.0))
    assert pending.requeue_lost(lambda queues: dict.fromkeys(queues, 0)) == 1
    assert entry().history == ()


TEXTS = {
    "quotes": 'it\'s "so" `it` is',
    "backslashes": "C:\\new\\table \\u0041 \\",
    "percent signs": "100 % of %s, %(name)s and %%",
    "colons": ":name, ::json and $1",
    "braces": "{'a': {0}} {} ${x}",
    "tabs": "a\tb\x1b[31m\x07\x7f",
    "other lines": "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g",
    "other languages": "Größe 数量 😀",
    "nothing": "",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_survives(shop: Event, text: str) -> None:
    """Any text of a reason is read back unchanged, and stored as one line of JSON in ASCII."""
    claims.reschedule(run_of(shop), 0.0, f"OSError: {text}")
    assert why() == [f"OSError: {text}".splitlines()[0]]
    (line,) = stored_history().split("\n")[:-1]
    assert json.loads(line)["why"] == entry().history[0].why
    assert line.isascii()


def test_what_no_database_can_keep_is_spelled_out(shop: Event) -> None:
    """A NUL and a lone surrogate are escaped."""
    claims.reschedule(run_of(shop), 0.0, "OSError: a\0b\ud800c")
    assert why() == [r"OSError: a\0b\ud800c"]


def test_an_error_of_many_lines_is_told_by_its_own(evt: Event, app_on: Celery, work: Callable[..., Any]) -> None:
    """The reason is the exception's own line, and not a later line, a cause or a note."""

    @on(evt, name="shop.mail", offload={"max_retries": 1, **AT_ONCE})
    def mail(sender: str) -> None:
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raised = ValueError("1 validation error\nname\n  Input should be a number\n    see the documentation")
            raised.add_note("a note")
            raise raised from error

    work(app_on)
    emit(evt, "ada")
    until(lambda: entry().state == "dead")
    assert why() == ["ValueError: 1 validation error"]


def test_a_long_error_is_told_by_its_own_line(evt: Event, app_on: Celery, work: Callable[..., Any]) -> None:
    """A long error keeps the exception's begin and end and its last frames, however long its cause is."""

    @on(evt, name="shop.mail", offload={"max_retries": 1, **AT_ONCE})
    def mail(sender: str) -> None:
        try:
            raise KeyError("cause" * 2000)
        except KeyError as error:
            raise ValueError(f"no stock {'x' * 10_000} at all") from error

    work(app_on)
    emit(evt, "ada")
    until(lambda: entry().state == "dead")
    assert [reason[:20] for reason in why()] == ["ValueError: no stock"]
    error = str(entry().error)
    assert exception_line(error).startswith("ValueError: no stock")
    assert error.endswith(" at all")
    assert "in mail" in error
    assert len(error) <= MAX_ERROR_CHARACTERS


def test_several_errors_at_once_are_told_by_the_group(evt: Event, app_on: Celery, work: Callable[..., Any]) -> None:
    """Several errors at once, as of `emit_async` in a handler, are recorded by their group."""
    inner = type(evt)("inner")

    @on(inner, name="shop.a")
    async def a(sender: object) -> None:
        raise KeyError("a")

    @on(inner, name="shop.b")
    async def b(sender: object) -> None:
        raise ValueError("b")

    @on(evt, name="shop.mail", offload={"max_retries": 1, **AT_ONCE})
    async def mail(sender: str) -> None:
        await emit_async(inner)

    work(app_on)
    emit(evt, "ada")
    until(lambda: entry().state == "dead")
    assert why() == ["ExceptionGroup: 2 handlers of event 'inner' failed (2 sub-exceptions)"]


@pytest.mark.parametrize("text", ["x", "\u00e9", "😀", "\\", "\0"])
def test_it_does_not_grow_without_end(shop: Event, text: str) -> None:
    """A long history keeps the first runs, each with a shortened reason."""
    for run in range(1, 101):
        claims.reschedule(run_of(shop) if run == 1 else next_run(), 0.0, f"{run}: {text * 10_000}")
    history = entry().history
    assert [run.run for run in history] == list(range(1, len(history) + 1))
    assert 1 < len(history) < 100
    assert max(len(run.why) for run in history) <= 600
    assert len(stored_history()) < 2 * MAX_HISTORY_CHARACTERS
    assert entry().attempts == 100


def test_a_replay_keeps_it(shop: Event) -> None:
    """A replay keeps the history and continues the numbers of its runs."""
    claims.reschedule(run_of(shop), 0.0, "OSError: first")
    claims.dead_letter(next_run(), "OSError: for good")
    assert operations.replay(operations.has_id_in([entry().id])) == 1
    assert why(runs=2) == ["OSError: first", "OSError: for good"]
    claims.reschedule(next_run(), 0.0, "OSError: third")
    assert [run.run for run in entry().history] == [1, 2, 3]


def test_a_run_that_was_taken_over_records_nothing(shop: Event) -> None:
    """A run whose delivery was claimed again cannot write to the history."""
    first = run_of(shop)
    claims.record_losses(claims.is_run_of_worker("boot"), "its worker died")
    next_run()
    with pytest.raises(claims.DeliveryLost):
        claims.reschedule(first, 0.0, "OSError: too late")
    assert why() == ["its worker died"]


def test_each_delivery_has_its_own(shop: Event) -> None:
    """Each delivery of an emission has its own history, even if their runs are lost together."""
    on(shop, name="shop.books", offload={"queue": "nobody's"})(lambda sender: None)
    emission = emit(shop, "ada")
    for handler in ("shop.mail", "shop.books"):
        claims.claim(emission.id, handler, WORKER)
    assert claims.record_losses(claims.is_run_of_worker("boot"), "its worker died") == 2
    assert {each.handler: [run.run for run in each.history] for each in operations.read_deliveries()} == {
        "shop.mail": [1],
        "shop.books": [1],
    }
