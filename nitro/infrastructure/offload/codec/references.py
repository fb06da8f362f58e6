"""Classes by name, `module:qualname`: checked where they are written, sought in loaded modules only."""

from __future__ import annotations

import sys
from types import ModuleType

from nitro.errors import PayloadUnreadable
from nitro.infrastructure.events.handler import importable_module
from nitro.infrastructure.events.names import reason_against


class Refused(Exception):
    """A value that cannot travel, before it is known where in the arguments it stands."""

    def __init__(self, cls: type, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = cls.__name__, why


def check_id(cls: type, value: object) -> None:
    """See that the id of an entity is one that a database can store.

    Raises:
        Refused: it is not; says why.
    """
    if type(value) is str and (reason := reason_against(value)) is not None:
        raise Refused(cls, f"its id is none: {reason}")


_references: dict[type, str] = {}


def reference_of(cls: type) -> str:
    """The name under which a worker finds the class.

    Raises:
        Refused: it would find nothing, or another class.
    """
    if cls not in _references:
        _references[cls] = _checked_reference(cls)
    return _references[cls]


def find_class(reference: str) -> type:
    """The class of that name in a module that is loaded already; nothing is ever imported.

    Raises:
        PayloadUnreadable: there is none.
    """
    module, _, qualname = reference.partition(":")
    found = _walk(_loaded(module), qualname)
    if not isinstance(found, type):
        raise PayloadUnreadable(f"no loaded module has a class {reference}; name its module in NITRO_HANDLERS")
    return found


def _checked_reference(cls: type) -> str:
    if _walk(sys.modules.get(cls.__module__), cls.__qualname__) is not cls:
        raise Refused(
            cls, f"a worker cannot find {cls.__qualname__} in {cls.__module__} by name; define it at module level"
        )
    return f"{importable_module(cls.__module__)}:{cls.__qualname__}"


def _loaded(module: str) -> ModuleType | None:
    found = sys.modules.get(module)
    if found is None and importable_module("__main__") == module:
        return sys.modules["__main__"]
    return found


def _walk(place: object, qualname: str) -> object:
    """What stands under a dotted name, or None; past any `__getattr__`, which might import a module."""
    for name in qualname.split("."):
        if not isinstance(place, ModuleType | type):
            return None
        place = object.__getattribute__(place, "__dict__").get(name)
    return place
