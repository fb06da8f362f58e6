"""The log: lines of emissions at DEBUG, lines of failures, and escaped text that cannot forge a line."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from nitro.domain.entities.base_entity import Entity
from nitro.errors import DispatchError
from nitro.infrastructure.events import Emission, Event, Namespace, emit, emit_async, on

NAME = "nitro.events"
FORGED = "CRITICAL:root:all is lost"
EVIL = f"shop\n{FORGED}\x1bc\r\x85\u2028\u202e"
"""Text that forges a line, clears a terminal, breaks lines for some readers and reverses the direction of text."""

Work = Callable[..., Any]


class Logged(Entity):
    """A sender."""

    email: str = ""


class Written(Entity, table=True):
    """An entity whose row is gone when its handler reads it."""

    __tablename__ = "logs_written"


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The events' logger at DEBUG."""
    with caplog.at_level(logging.DEBUG, NAME):
        yield caplog


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """Text that the logger writes through a StreamHandler of the standard library."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
    logger = logging.getLogger(NAME)
    logger.addHandler(handler)
    yield text
    logger.removeHandler(handler)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Returns the messages of the events' logger."""
    return [record.getMessage() for record in caplog.records if record.name == NAME]


def only(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """Returns the only record of the events' logger."""
    (record,) = [record for record in caplog.records if record.name == NAME]
    return record


def json_facts(record: logging.LogRecord) -> dict[str, Any]:
    """Returns the facts of a record for formatters that write JSON."""
    return {name: value for name, value in vars(record).items() if name.startswith("nitro_")}


def test_an_emission_is_one_line_at_debug(evt: Event, debug: pytest.LogCaptureFixture) -> None:
    """An emission is one line with event, sender, counts of handlers and id."""
    on(evt, priority=3, name="shop.fine")(lambda sender: None)
    on(evt, priority=2, condition=lambda sender: False, name="shop.skipped")(lambda sender: None)
    on(evt, priority=1, on_error="log", name="shop.failing")(lambda sender: 1 / 0)
    debug.clear()
    emission = emit(evt, Logged(id="o1", email="secret"))
    *_, line = lines(debug)
    assert line == (f"event order.placed by Logged:o1: 2 ran, 1 skipped, 1 failed, 0 queued (emission {emission.id})")
    assert "secret" not in debug.text


def test_it_counts_what_is_queued(evt: Event, queue: Any, debug: pytest.LogCaptureFixture) -> None:
    """The line counts every offloaded handler that becomes a task."""
    for name in ("shop.a", "shop.b"):
        on(evt, offload=True, name=name)(lambda sender: None)
    emission = emit(evt)
    line = f"event order.placed by ANY: 0 ran, 0 skipped, 0 failed, 2 queued (emission {emission.id})"
    assert lines(debug) == [line]


def test_it_has_its_facts_apart(evt: Event, debug: pytest.LogCaptureFixture) -> None:
    """A record has the facts as attributes, so that a JSON formatter need not parse the line."""
    emission = emit(evt, Logged(id="o1"))
    record = only(debug)
    assert record.levelno == logging.DEBUG
    assert json_facts(record) == {"nitro_event": evt.name, "nitro_sender": "Logged:o1", "nitro_emission": emission.id}


def test_it_says_who_has_cancelled(evt: Event, queue: Any, debug: pytest.LogCaptureFixture) -> None:
    """The line names the handler that cancelled, and counts nothing as queued."""
    on(evt, offload=True, name="shop.mail")(lambda sender: None)
    on(evt, name="shop.gate")(lambda sender: False)
    emission = emit(evt)
    outcome = "1 ran, 0 skipped, 0 failed, 0 queued, cancelled by shop.gate"
    assert lines(debug) == [f"event order.placed by ANY: {outcome} (emission {emission.id})"]


def facts_of(emission: str) -> dict[str, str]:
    """Returns the facts of a record about `shop.handler`."""
    return {
        "nitro_handler": "shop.handler",
        "nitro_event": "order.placed",
        "nitro_sender": "Logged:o1",
        "nitro_emission": emission,
    }


@pytest.mark.parametrize("function", ["emit", "emit_async"])
def test_it_says_what_was_raised(evt: Event, debug: pytest.LogCaptureFixture, function: str) -> None:
    """The line has the class of the exception, and neither its message nor its traceback."""

    @on(evt, name="shop.handler")
    def handler(sender: object) -> None:
        raise ValueError("secret")

    async def emitted() -> None:
        await emit_async(evt)

    with pytest.raises(ValueError, match="secret"):
        emit(evt) if function == "emit" else asyncio.run(emitted())
    assert ": 1 ran, 0 skipped, 0 failed, 0 queued, raised ValueError (emission " in lines(debug)[0]
    assert "secret" not in debug.text


def test_emit_async_is_one_line_when_all_have_ended(evt: Event, debug: pytest.LogCaptureFixture) -> None:
    """`emit_async` logs its line after its async handlers have ended, and counts them."""
    seen: list[list[str]] = []

    @on(evt, name="shop.handler")
    async def handler(sender: object) -> None:
        await asyncio.sleep(0)
        seen.append(lines(debug))

    async def emitted() -> Emission:
        return await emit_async(evt)

    emission = asyncio.run(emitted())
    assert seen == [[]]
    assert lines(debug) == [f"event order.placed by ANY: 1 ran, 0 skipped, 0 failed, 0 queued (emission {emission.id})"]


def test_an_emission_inside_another_has_its_line_first(evt: Event, debug: pytest.LogCaptureFixture) -> None:
    """Lines are logged in the order in which emissions end."""
    further = Namespace().event("order.paid")
    on(evt)(lambda sender: emit(further) and None)
    emit(evt)
    assert [line.split()[1] for line in lines(debug)] == ["order.paid", "order.placed"]


def test_at_info_an_emission_says_nothing(evt: Event, caplog: pytest.LogCaptureFixture) -> None:
    """An emission logs nothing at INFO."""
    on(evt)(lambda sender: False)
    with caplog.at_level(logging.INFO, NAME):
        emit(evt)
    assert lines(caplog) == []


@pytest.mark.parametrize("name", [NAME, "nitro", None], ids=["nitro.events", "nitro", "root"])
def test_debug_can_be_turned_on_and_off_while_it_runs(
    evt: Event, caplog: pytest.LogCaptureFixture, name: str | None
) -> None:
    """DEBUG at this logger or above takes effect at the next emit, on and off."""
    on(evt)(lambda sender: None)
    emit(evt)
    emit(evt)
    assert lines(caplog) == []
    with caplog.at_level(logging.DEBUG, name):
        emit(evt)
    assert len(lines(caplog)) == 1
    emit(evt)
    assert len(lines(caplog)) == 1
    with caplog.at_level(logging.DEBUG, name):
        emit(evt)
    assert len(lines(caplog)) == 2


def test_logging_disabled_is_disabled(evt: Event, debug: pytest.LogCaptureFixture) -> None:
    """`logging.disable` switches the line off, and on again."""
    on(evt)(lambda sender: None)
    emit(evt)
    earlier = logging.root.manager.disable
    logging.disable(logging.DEBUG)
    try:
        emit(evt)
    finally:
        logging.disable(earlier)
    emit(evt)
    assert len(lines(debug)) == 2


@pytest.mark.parametrize("function", ["emit", "emit_async"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_that_fails_and_stops_nothing_is_one_line(
    evt: Event, caplog: pytest.LogCaptureFixture, function: str, kind: str
) -> None:
    """The line names handler, event, sender and emission, also as attributes, with the traceback below."""

    def sync(sender: Logged) -> None:
        raise ValueError("no stock")

    async def coroutine(sender: Logged) -> None:
        raise ValueError("no stock")

    chosen: dict[str, Any] = {"sync": sync, "async": coroutine}
    on(evt, on_error="log", name="shop.handler")(chosen[kind])

    async def emitted() -> Emission:
        emission = emit(evt, Logged(id="o1")) if function == "emit" else await emit_async(evt, Logged(id="o1"))
        while not emission.failed:
            await asyncio.sleep(0)
        return emission

    emission = asyncio.run(emitted())
    record = only(caplog)
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        f"handler shop.handler of event order.placed by Logged:o1 failed (emission {emission.id})"
    )
    assert json_facts(record) == facts_of(emission.id)
    assert record.exc_info is not None
    assert record.exc_info[1] is emission.failed["shop.handler"]


@pytest.mark.parametrize("offload", [False, True], ids=["inline", "offloaded"])
def test_a_condition_that_raises_is_one_line(
    evt: Event, queue: Any, caplog: pytest.LogCaptureFixture, offload: bool
) -> None:
    """The line of a condition that raises says that its handler is skipped."""
    on(evt, condition=lambda sender: sender.total > 1, offload=offload, name="shop.handler")(lambda sender: None)
    emission = emit(evt, Logged(id="o1"))
    record = only(caplog)
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        "condition of handler shop.handler of event order.placed by Logged:o1 raised; it is skipped"
        f" (emission {emission.id})"
    )
    assert json_facts(record) == facts_of(emission.id)
    assert record.exc_info is not None


def assert_is_one_line(text: str) -> None:
    """Asserts that the text is one line of printable characters."""
    assert text.endswith("\n")
    assert text[:-1].isprintable(), text
    assert r"shop\nCRITICAL" in text


@pytest.mark.parametrize("where", ["event", "sender", "canceller"])
def test_no_name_breaks_the_line_of_an_emission(
    evt: Event, debug: pytest.LogCaptureFixture, output: io.StringIO, where: str
) -> None:
    """Names of events, senders and handlers are escaped, because an id may come from a form."""
    event = Namespace().event(EVIL) if where == "event" else evt
    on(event, name=EVIL if where == "canceller" else "shop.gate")(lambda sender: False)
    emit(event, Logged(id=EVIL) if where == "sender" else Logged(id="o1"))
    assert_is_one_line(output.getvalue())


@pytest.mark.parametrize("source", ["handler", "condition"])
@pytest.mark.parametrize("where", ["event", "sender", "handler"])
def test_no_name_breaks_the_line_of_a_failure(
    evt: Event, caplog: pytest.LogCaptureFixture, output: io.StringIO, where: str, source: str
) -> None:
    """Names are escaped, and each line of the traceback below is indented."""
    event = Namespace().event(EVIL) if where == "event" else evt
    condition = (lambda sender: 1 / 0) if source == "condition" else None
    name = EVIL if where == "handler" else "shop.handler"
    on(event, name=name, on_error="log", condition=condition)(lambda sender: 1 / 0)
    emit(event, Logged(id=EVIL) if where == "sender" else Logged(id="o1"))
    first, *below = output.getvalue().splitlines(keepends=True)
    assert_is_one_line(first)
    assert below
    assert all(line.startswith("  ") for line in below)


def test_no_name_breaks_the_line_of_what_its_loop_has_cancelled(evt: Event, output: io.StringIO) -> None:
    """The name of an async handler that a closing loop cancels is escaped."""
    on(evt, name=EVIL)(lambda sender: asyncio.sleep(60))

    async def main() -> None:
        emit(evt)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert "was cancelled before it finished" in output.getvalue()
    assert_is_one_line(output.getvalue())


def test_no_name_breaks_the_line_of_what_was_not_dispatched(
    evt: Event, queue: Any, open_transaction: Any, output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of handlers that were not dispatched after a commit are escaped."""

    def away() -> None:
        raise DispatchError(evt.name, [EVIL], OSError("away"))

    monkeypatch.setattr(queue, "dispatch", lambda *_: away)
    on(evt, name=EVIL, offload=True)(lambda sender: None)
    emit(evt)
    open_transaction.commit()
    first, *_ = output.getvalue().splitlines(keepends=True)
    assert "was not dispatched after its commit" in first
    assert_is_one_line(first)


def test_nothing_that_a_logger_of_ours_says_breaks_a_line(output: io.StringIO) -> None:
    """The logger escapes every message, and a percent sign in it stays."""
    logging.getLogger(NAME).warning("the database is away: %s", EVIL + "\x00100 %")
    assert_is_one_line(output.getvalue())
    assert output.getvalue().endswith(r"\x00100 %" + "\n")


def test_the_facts_apart_are_as_they_are(evt: Event, debug: pytest.LogCaptureFixture) -> None:
    """Attributes of a record are not escaped: a JSON formatter does so itself."""
    emit(evt, Logged(id=EVIL))
    assert json_facts(only(debug))["nitro_sender"] == f"Logged:{EVIL}"


@pytest.mark.parametrize("what", ["message", "note", "cause", "member"])
def test_no_exception_forges_a_line(
    evt: Event, caplog: pytest.LogCaptureFixture, output: io.StringIO, what: str
) -> None:
    """Message, notes, cause and members of an exception cannot forge a line."""

    @on(evt, on_error="log", name="shop.handler")
    def handler(sender: object) -> None:
        error: Exception = ValueError(EVIL if what == "message" else "no stock")
        if what == "note":
            error.add_note(EVIL)
        if what == "member":
            error = ExceptionGroup("two", [error, ValueError(EVIL)])
        raise error from (ValueError(EVIL) if what == "cause" else None)

    emit(evt)
    first, *below = output.getvalue().splitlines()
    assert first.startswith("ERROR:nitro.events:handler shop.handler of event order.placed")
    assert all(line.startswith("  ") and line.isprintable() for line in below)
    assert [line for line in below if FORGED in line]
    assert [line for line in below if line.endswith('raise error from (ValueError(EVIL) if what == "cause" else None)')]


def test_a_traceback_is_shown_once(evt: Event, caplog: pytest.LogCaptureFixture, output: io.StringIO) -> None:
    """Each log handler writes the traceback once."""
    on(evt, on_error="log", name="shop.handler")(lambda sender: 1 / 0)
    emit(evt)
    assert output.getvalue().count("ZeroDivisionError") == 1
    assert caplog.text.count("ZeroDivisionError") == 1


def test_a_handler_that_is_skipped_in_a_worker_is_one_line(
    evt: Event, app: Celery, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    """The line of a handler that is skipped in a worker has an escaped name and id."""
    on(evt, offload={"entity": "reload", "on_missing": "skip"}, name=EVIL)(lambda sender: None)
    Written.init_db()
    row = Written(id=EVIL).save()
    emission = emit(evt, row)
    row.delete()
    with caplog.at_level(logging.INFO, "nitro.worker"):
        assert work(app).only(emission) is None
    (line,) = [record.getMessage() for record in caplog.records if "is skipped" in record.getMessage()]
    assert_is_one_line(f"{line}\n")
