"""Named things, `module:qualname`: checked where they are written, sought in loaded modules only."""

from __future__ import annotations

import sys
from types import ModuleType

from nitro.infrastructure.events.handler import importable_module
from nitro.infrastructure.events.names import rejection_reason


class ValueRefused(Exception):
    """A value that cannot travel, before it is known where in the arguments it stands."""

    def __init__(self, cls: type, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = cls.__name__, why


def check_id(cls: type, value: object) -> None:
    """See that the id of an entity is one that a database can store.

    Raises:
        Refused: it is not; says why.
    """
    if type(value) is str and (reason := rejection_reason(value)) is not None:
        raise ValueRefused(cls, f"its id is none: {reason}")


def name_of(thing: object) -> str | None:
    """The name under which a worker finds a class, a type variable or a new type; None if it would not."""
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    name = qualname if isinstance(qualname, str) else getattr(thing, "__name__", None)
    if (
        not isinstance(module, str)
        or not isinstance(name, str)
        or _find_attribute(sys.modules.get(module), name) is not thing
    ):
        return None
    return f"{importable_module(module)}:{name}"


def find_named(name: str) -> object:
    """What has that name in a module that is loaded already, or None; nothing is ever imported."""
    module, _, qualname = name.partition(":")
    return _find_attribute(_loaded_module(module), qualname)


def _loaded_module(module: str) -> ModuleType | None:
    found = sys.modules.get(module)
    if found is None and importable_module("__main__") == module:
        return sys.modules["__main__"]
    return found


def _find_attribute(place: object, qualname: str) -> object:
    """What stands under a dotted name, or None; past any `__getattr__`, which might import a module.

    Pydantic puts a parametrised class into its module under one name, such as `Box[decimal.Decimal]`.
    """
    for name in [qualname] if "[" in qualname else qualname.split("."):
        if not isinstance(place, ModuleType | type):
            return None
        place = object.__getattribute__(place, "__dict__").get(name)
    return place
