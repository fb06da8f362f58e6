"""Text of the log: escaped characters, and the line of an exception."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

import pytest
from pydantic import BaseModel

from nitro.infrastructure.logs import escape_text, exception_line, get_logger


def test_lines_without_an_exception_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """`get_logger` adds one filter to a logger, which leaves lines without an exception alone."""
    logger = get_logger("nitro.test")
    assert get_logger("nitro.test") is logger
    assert len(logger.filters) == 1
    with caplog.at_level(logging.INFO, "nitro.test"):
        logger.info("fine", exc_info=False)
        logger.info("no exception", exc_info=True)  # noqa: LOG014  # the case under test
    assert [record.getMessage() for record in caplog.records] == ["fine", "no exception"]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("order.placed", "order.placed"),
        ("größe 'ä' \\n \"x\"", "größe 'ä' \\n \"x\""),
        ("a\nb\x1b[2J\ttab", r"a\nb\x1b[2J\ttab"),
        ("\ud800\u202e\u2028\xa0", r"\ud800\u202e\u2028\xa0"),
        ("", ""),
    ],
)
def test_what_is_printable_stays_and_the_rest_is_escaped(text: str, escaped: str) -> None:
    """`escape_text` escapes characters as Python does, and keeps printable ones."""
    assert escape_text(text) == escaped


class Amount(BaseModel):
    """A model whose validation error has several lines, indented ones among them."""

    cents: int


def _refused() -> None:
    Amount.model_validate({"cents": "many"})


def _many_lines() -> None:
    raise ValueError("no stock\n  at all\nnor tomorrow")


def _caused() -> None:
    try:
        _group()
    except Exception as error:
        raise ConnectionError("away") from error


def _group() -> None:
    raise ExceptionGroup("two", [ValueError("no stock"), ExceptionGroup("inner", [KeyError("z")])])


def _group_with_a_cause() -> None:
    try:
        _many_lines()
    except ValueError as error:
        raise ExceptionGroup("two\n  of them", [error]) from error


def _noted() -> None:
    error = ValueError("no stock")
    error.add_note("  raised by a handler")
    raise error


def _endless() -> None:
    _endless()


def _wrong() -> None:
    compile("x = = 1", "shop.py", "exec")


def _silent() -> None:
    raise ValueError


@pytest.mark.parametrize("shortened", [False, True], ids=["whole", "its end"])
@pytest.mark.parametrize(
    ("fails", "first"),
    [
        (_refused, "pydantic_core._pydantic_core.ValidationError: 1 validation error for Amount"),
        (_many_lines, "ValueError: no stock"),
        (_caused, "ConnectionError: away"),
        (_group, "ExceptionGroup: two (2 sub-exceptions)"),
        (_group_with_a_cause, "ExceptionGroup: two"),
        (_noted, "ValueError: no stock"),
        (_endless, "RecursionError: maximum recursion depth exceeded"),
        (_wrong, "SyntaxError: invalid syntax"),
        (_silent, "ValueError"),
    ],
)
def test_a_traceback_says_one_line_in_the_end(fails: Callable[[], None], first: str, shortened: bool) -> None:
    """`exception_line` returns the exception's first line, also of a traceback without its beginning."""
    with pytest.raises(Exception) as raised:  # noqa: PT011  # any exception
        fails()
    text = "".join(traceback.format_exception(raised.value))
    cut = text.index("File") if shortened else 0
    assert exception_line(f"…{text[cut + 10 :]}" if shortened else text) == first


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("", ""),
        ("\n", ""),
        ("its worker died", "its worker died"),
        ("its worker died\nof hunger", "its worker died"),
        ("not published: ValueError: no\n  stock\n", "not published: ValueError: no"),
    ],
)
def test_a_reason_without_a_traceback_says_its_first_line(text: str, first: str) -> None:
    """`exception_line` returns the first line of a text that is no traceback."""
    assert exception_line(text) == first
