"""Values without parts: a writer for each exact type, and a reader for each tag."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from math import isfinite
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nitro.errors import PayloadUnreadable
from nitro.infrastructure.events import ANY
from nitro.infrastructure.offload.codec.names import ValueRefused

Json = Any
"""A value that the json module reads and writes: None, bool, int, float, str, or a list or dict of these."""

SURROGATE_PATTERN = re.compile(r"[\ud800-\udfff]")
ZONE_KEY_PATTERN = re.compile(r"[\w+-]+(/[\w+-]+)*", re.ASCII)


def is_json_safe(value: str) -> bool:
    """Whether a text survives JSON, which joins two neighbouring surrogates to one character."""
    return value.isascii() or not SURROGATE_PATTERN.search(value)


def _unchanged(value: Json) -> Json:
    return value


def _text(value: str) -> Json:
    return value if is_json_safe(value) else {"$str": value.encode("utf-8", "surrogatepass").hex()}


def _integer(value: int) -> Json:
    """Returns an integer beyond 64 bit as hexadecimal text: Python limits the digits of decimal text only."""
    return value if -(1 << 63) <= value < 1 << 63 else {"$int": hex(value)}


def _float(value: float) -> Json:
    return value if isfinite(value) else {"$float": repr(value)}


def _bytes(value: bytes) -> Json:
    return {"$bytes": b64encode(value).decode()}


def _datetime(value: datetime) -> Json:
    return {"$datetime": _moment(value)}


def _time(value: time) -> Json:
    return {"$time": _moment(value)}


def _moment(value: datetime | time) -> Json:
    """Returns ISO text, with fold, offset and the zone's key where the text does not have them."""
    zone, offset = value.tzinfo, value.utcoffset()
    if type(zone) is ZoneInfo and zone.key is not None:
        return [value.replace(tzinfo=None).isoformat(), value.fold, _microseconds(offset), zone.key]
    if zone is not None and type(zone) is not timezone:
        _check_offset(value, offset)
    if offset is not None and offset.microseconds:  # `fromisoformat` ignores them
        return [value.replace(tzinfo=None).isoformat(), value.fold, _microseconds(offset)]
    return [value.isoformat(), 1] if value.fold else value.isoformat()


def _microseconds(offset: timedelta | None) -> int | None:
    return None if offset is None else offset // timedelta(microseconds=1)


def _check_offset(value: datetime | time, offset: timedelta | None) -> None:
    """Raises ValueRefused for a zone that is not of `zoneinfo` if its offset alone would not make an equal value.

    To Python a moment in a repeated or skipped hour is unequal to every moment in another zone.
    """
    if offset is None:
        raise ValueRefused(
            type(value), "its time zone has no offset here; send it without zone, and the zone's name beside it"
        )
    if value.replace(fold=1 - value.fold).utcoffset() != offset:
        raise ValueRefused(
            type(value), "its hour has two offsets in its time zone; pass it in UTC, or with a zone of zoneinfo"
        )


def _read_moment(cls: type[datetime | time]) -> Callable[[Json], datetime | time]:
    def read(body: Json) -> datetime | time:
        if isinstance(body, str):
            return cls.fromisoformat(body)
        text, fold, *zone = body
        moment = cls.fromisoformat(text).replace(fold=fold)
        return _in_zone(moment, *zone) if zone else moment

    return read


def _in_zone(moment: datetime | time, microseconds: int | None, key: str | None = None) -> datetime | time:
    """Returns the moment in the named zone if it has the same offset there, else with the offset alone."""
    offset = None if microseconds is None else timedelta(microseconds=microseconds)
    zone = None if key is None else _zone(key)
    if zone is not None and moment.replace(tzinfo=zone).utcoffset() == offset:
        return moment.replace(tzinfo=zone)
    if offset is None:
        raise PayloadUnreadable(f"this process does not know the time zone {key!r}")
    return moment.replace(tzinfo=timezone(offset))


def _zone(key: str) -> ZoneInfo | None:
    if not ZONE_KEY_PATTERN.fullmatch(key):
        raise PayloadUnreadable("the payload names a time zone that can be none")
    try:
        return ZoneInfo(key)
    except (OSError, ValueError, ZoneInfoNotFoundError):
        return None


def _date(value: date) -> Json:
    return {"$date": value.isoformat()}


def _timedelta(value: timedelta) -> Json:
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


def _decimal(value: Decimal) -> Json:
    return {"$decimal": str(value)}


def _uuid(value: UUID) -> Json:
    return {"$uuid": str(value)}


def _any(value: object) -> Json:
    """Returns the tag of ANY, blinker's symbol for "every sender"; a worker knows no other symbol."""
    if value is not ANY:
        raise ValueRefused(type(value), "of blinker's symbols only ANY travels; pass a str")
    return {"$any": True}


SCALAR_WRITERS: dict[type, Callable[[Any], Json]] = {
    type(None): _unchanged,
    bool: _unchanged,
    str: _text,
    int: _integer,
    float: _float,
    bytes: _bytes,
    datetime: _datetime,
    date: _date,
    time: _time,
    timedelta: _timedelta,
    Decimal: _decimal,
    UUID: _uuid,
    type(ANY): _any,
}

SCALAR_READERS: dict[str, Callable[[Json], object]] = {
    "$str": lambda body: bytes.fromhex(body).decode("utf-8", "surrogatepass"),
    "$int": lambda body: int(body, 16),
    "$float": float,
    "$bytes": lambda body: b64decode(body, validate=True),
    "$datetime": _read_moment(datetime),
    "$date": date.fromisoformat,
    "$time": _read_moment(time),
    "$timedelta": lambda body: timedelta(*body),
    "$decimal": Decimal,
    "$uuid": UUID,
    "$any": lambda _body: ANY,
}
