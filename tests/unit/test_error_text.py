"""The text of an error that a row keeps: contract section 13."""

from __future__ import annotations

import traceback

import pytest

from nitro.infrastructure.logs import exception_line
from nitro.infrastructure.worker.attempt import MAX_ERROR_CHARACTERS, _error_text


def caught(error: Exception) -> Exception:
    """The error with the traceback of having been raised."""
    try:
        raise error
    except Exception as raised:
        return raised


def test_a_shortened_group_is_still_named() -> None:
    """The error of an exception group is found wherever the text of its members is cut."""
    for length in range(200):
        members = [*(caught(ValueError(f"{number}" * 100)) for number in range(14)), caught(KeyError("b" * length))]
        text = _error_text(caught(ExceptionGroup("two handlers failed", members)))
        assert len(text) <= MAX_ERROR_CHARACTERS
        assert exception_line(text) == "ExceptionGroup: two handlers failed (15 sub-exceptions)"


def test_a_long_message_keeps_both_ends() -> None:
    """The middle of a message of one line is left out."""
    text = _error_text(caught(ValueError(f"begin {'x' * 10_000} end")))
    assert len(text) <= MAX_ERROR_CHARACTERS
    assert exception_line(text).startswith("ValueError: begin xxx")
    assert text.endswith("xxx end")


class Unformattable(SyntaxError):
    """An exception of which no traceback can be made."""

    @property
    def lineno(self) -> int:
        raise ZeroDivisionError


def test_an_error_that_cannot_be_told_is_an_error() -> None:
    """An exception without a traceback is recorded by its class."""
    with pytest.raises(ZeroDivisionError):
        traceback.format_exception(Unformattable("odd"))
    assert _error_text(Unformattable("odd")).startswith("Unformattable")
