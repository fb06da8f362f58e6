"""References to classes: `module:qualname`, or origin and arguments of a parametrised class."""

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
"""Maximum of parametrised classes that a process makes because messages name them; the process keeps them all."""
MAX_REFERENCE_CHARS = 4_000
"""Maximum of characters of a reference to a parametrised class."""

_references: dict[type, Json] = {}
_parametrised: dict[str, object] = {}


def reference_of(cls: type) -> Json:
    """Returns the reference by which a worker finds the class.

    Raises:
        ValueRefused: a worker would find nothing, or another class.
    """
    if cls not in _references:
        _references[cls] = _checked_reference(cls)
    return _references[cls]


def parametrised_reference(alias: object, fallback: Json) -> Json:
    """Returns the reference to an alias such as `Pair[int]`, or the fallback if a worker could not make it again."""
    try:
        reference = write_reference(alias)
        return reference if read_reference(reference) == alias else fallback
    except (PayloadUnreadable, ValueRefused, TypeError):
        return fallback


def find_class(reference: Json) -> type:
    """Returns the class of a reference; only loaded modules are searched.

    Raises:
        PayloadUnreadable: no loaded module has the class.
    """
    cls = find_named(reference) if type(reference) is str else find_parametrised(reference)
    if not isinstance(cls, type):
        cls = get_origin(cls)  # such as Pair for the alias `Pair[int]` of a dataclass
    if not isinstance(cls, type):
        raise PayloadUnreadable(f"no loaded module has a class {reference}; name its module in NITRO_HANDLERS")
    return cls


def find_parametrised(reference: Json) -> object:
    """Returns a parametrised class, which is made once per process.

    Raises:
        PayloadUnreadable: a part of it is in no loaded module or is not allowed, or the process has made too many.
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
