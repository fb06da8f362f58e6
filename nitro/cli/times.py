"""Times on the command line: options that take a moment or an age, and their display."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import click

UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


class Moment(click.ParamType[datetime]):
    """An option that takes a moment in UTC: an age before now, or a date."""

    name = "age or date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Returns the moment that a text means.

        Raises:
            BadParameter: the text is no moment; the message says what is allowed.
        """
        if isinstance(value, datetime):
            return value
        try:
            return _parse_moment(value)
        except (ValueError, OverflowError) as error:
            allowed = "an age such as 14d, 12h or 30m, nor a date such as 2026-01-31"
            raise click.BadParameter(f"{value!r} is neither {allowed}", ctx, param) from error


class Age(click.ParamType[timedelta]):
    """An option that takes a length of time."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Returns the length of time that a text means.

        Raises:
            BadParameter: the text is no length of time; the message says what is allowed.
        """
        if isinstance(value, timedelta):
            return value
        try:
            return _parse_age(value)
        except (ValueError, OverflowError) as error:
            raise click.BadParameter(f"{value!r} is no age such as 5m, 1h or 30s", ctx, param) from error


def format_clock(moment: datetime) -> str:
    """Returns the time of the day, with milliseconds."""
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"


def _parse_age(text: str) -> timedelta:
    age = re.fullmatch(r"([0-9]+)([dhms])", text)
    if age is None:
        raise ValueError(text)
    return timedelta(**{UNITS[age[2]]: int(age[1])})


def _parse_moment(text: str) -> datetime:
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    return datetime.now(UTC) - _parse_age(text)
