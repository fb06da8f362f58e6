"""Names of classes, `module:qualname`: checked when they are written, looked up in loaded modules only."""

from __future__ import annotations

import sys
from types import ModuleType

from nitro.infrastructure.events.handler import importable_module
from nitro.infrastructure.events.names import rejection_reason


class ValueRefused(Exception):
    """The codec cannot write a value; `encode` adds its place in the arguments and raises PayloadError."""

    def __init__(self, cls: type, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = cls.__name__, why


def check_id(cls: type, value: object) -> None:
    """Checks that a database can store the id of an entity.

    Raises:
        ValueRefused: it cannot; says why.
    """
    if type(value) is str and (reason := rejection_reason(value)) is not None:
        raise ValueRefused(cls, f"its id is none: {reason}")


def name_of(named: object) -> str | None:
    """Returns the name by which a worker finds a class, a type variable or a new type; None if there is none."""
    module, qualname = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    name = qualname if isinstance(qualname, str) else getattr(named, "__name__", None)
    if (
        not isinstance(module, str)
        or not isinstance(name, str)
        or _find_attribute(sys.modules.get(module), name) is not named
    ):
        return None
    return f"{importable_module(module)}:{name}"


def find_named(name: str) -> object:
    """Returns the object with this name from a loaded module, or None; imports nothing."""
    module, _, qualname = name.partition(":")
    return _find_attribute(_loaded_module(module), qualname)


def _loaded_module(module: str) -> ModuleType | None:
    loaded = sys.modules.get(module)
    if loaded is None and importable_module("__main__") == module:
        return sys.modules["__main__"]
    return loaded


def _find_attribute(owner: object, qualname: str) -> object:
    """Returns the attribute with a dotted name, or None; bypasses `__getattr__`, which might import a module.

    Pydantic puts a parametrised class into its module under one name, such as `Box[decimal.Decimal]`.
    """
    for name in [qualname] if "[" in qualname else qualname.split("."):
        if not isinstance(owner, ModuleType | type):
            return None
        owner = object.__getattribute__(owner, "__dict__").get(name)
    return owner
