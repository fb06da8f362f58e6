"""References to classes: `module:qualname`, or origin and arguments of a parametrised one."""

from __future__ import annotations

from typing import get_origin

from nitro.errors import PayloadUnreadable
from nitro.infrastructure.offload.codec.generics import (
    is_parametrised,
    origin_and_arguments,
    read_reference,
    write_reference,
)
from nitro.infrastructure.offload.codec.names import ValueRefused, find_named, name_of
from nitro.infrastructure.offload.codec.scalars import Json

MAX_PARAMETRISED_CLASSES = 500
"""Parametrised classes that one process makes because messages name them: each is kept for good."""
MAX_REFERENCE_CHARS = 4_000
"""Characters of a reference to a parametrised class."""

_references: dict[type, Json] = {}
_parametrised: dict[str, object] = {}


def reference_of(cls: type) -> Json:
    """What a worker finds the class by.

    Raises:
        Refused: it would find nothing, or another class.
    """
    if cls not in _references:
        _references[cls] = _checked_reference(cls)
    return _references[cls]


def parametrised_reference(alias: object, otherwise: Json) -> Json:
    """The reference to a class such as `Pair[int]` of typing, or the other one if a worker could not make it again."""
    try:
        reference = write_reference(alias)
        return reference if read_reference(reference) == alias else otherwise
    except (PayloadUnreadable, ValueRefused, TypeError):
        return otherwise


def find_class(reference: Json) -> type:
    """The class in a module that is loaded already; of a parametrised one its origin and arguments are.

    Raises:
        PayloadUnreadable: there is none.
    """
    found = find_named(reference) if type(reference) is str else find_parametrised(reference)
    if not isinstance(found, type):
        found = get_origin(found)  # of a dataclass such as `Pair[int]`
    if not isinstance(found, type):
        raise PayloadUnreadable(f"no loaded module has a class {reference}; name its module in NITRO_HANDLERS")
    return found


def find_parametrised(reference: Json) -> object:
    """A parametrised class, made only once.

    Raises:
        PayloadUnreadable: something in it is in no loaded module or may not stand there, or there are too many.
    """
    text = repr(reference)
    if text not in _parametrised:
        if len(text) > MAX_REFERENCE_CHARS:
            raise PayloadUnreadable("the payload has a parametrised class that is too long")
        if len(_parametrised) >= MAX_PARAMETRISED_CLASSES:
            raise PayloadUnreadable(
                f"messages have named {MAX_PARAMETRISED_CLASSES} parametrised classes in this process"
            )
        _parametrised[text] = read_reference(reference)
    return _parametrised[text]


def _checked_reference(cls: type) -> Json:
    if not is_parametrised(cls):
        name = name_of(cls)
        if name is None:
            where = f"{cls.__qualname__} in {cls.__module__}"
            raise ValueRefused(cls, f"a worker cannot find {where} by name; define it at module level")
        return name
    try:
        reference = write_reference(cls)
        if len(repr(reference)) <= MAX_REFERENCE_CHARS and origin_and_arguments(
            read_reference(reference)
        ) == origin_and_arguments(cls):
            return reference
    except (PayloadUnreadable, ValueRefused, TypeError) as error:
        why: str = str(error)
    else:
        why = "its arguments would be others"
    name = name_of(cls)
    if name is None:
        raise ValueRefused(cls, f"a worker cannot make it again: {why}; parametrise it at module level")
    return name
