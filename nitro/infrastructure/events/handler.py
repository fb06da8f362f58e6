"""Handlers: a function connected to an event, with its stable name, its sender and its options."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from blinker import ANY

from nitro.infrastructure.events.definition import Definition

if TYPE_CHECKING:
    from pathlib import Path

Function = Callable[..., Any]
FunctionKind = Literal["sync", "generator", "async", "async generator"]
OnError = Literal["raise", "log"]


class OffloadLike(Protocol):
    """The checked options of an offloaded handler, as far as events need them."""

    @property
    def delivery(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Handler:
    """A function that is connected to an event, with its options.

    Attributes:
        call: callable that runs the function; a weakly referenced function runs only while it exists.
        key: identity of the function, the same for two connections of one function.
        name: stable name, also of the Celery task.
        is_async: whether the function needs an event loop.
        sender: filter of the senders that the handler hears.
        offload: checked options of the Celery task, or None for an inline handler.
        order: number of the connection, counted over all events.
        definition: source position of the function, or None if it is not written in Python.
    """

    call: Function
    key: Hashable
    name: str
    kind: FunctionKind
    is_async: bool
    sender: SenderFilter
    priority: int
    condition: Function | None
    on_error: OnError
    offload: OffloadLike | None
    order: int
    definition: Definition | None = None

    @property
    def function(self) -> Function | None:
        """The connected function, or None if it was weakly referenced and no longer exists."""
        return self.call.function if isinstance(self.call, WeakFunction) else self.call

    @property
    def is_alive(self) -> bool:
        """Whether the function and the sender still exist."""
        return self.function is not None and self.sender.is_alive

    def has_same_origin_as(self, other: Handler) -> bool:
        """Whether both have the same function, or functions of one factory, so that neither redefines the other."""
        own, others = self.definition, other.definition
        return own is not None and others is not None and own.has_same_origin_as(others)

    def replaces(self, old: Handler) -> bool:
        """Whether the handler is a newer definition of `old`; a task name also has only one function of a factory."""
        if self.definition is None or old.definition is None or self.name != old.name:
            return False
        one_task = self.offload is not None and old.offload is not None
        return self.definition.redefines(old.definition) or (
            one_task and self.definition.shares_code_with(old.definition)
        )


class WeakFunction:
    """A weakly referenced function; a call does nothing once the function no longer exists."""

    __slots__ = ("_reference",)

    def __init__(self, function: Function, on_dead: Callable[[object], None]) -> None:
        reference_type = weakref.WeakMethod if isinstance(function, MethodType) else weakref.ref
        self._reference: Callable[[], Function | None] = reference_type(function, on_dead)

    @property
    def function(self) -> Function | None:
        """The function, or None if it no longer exists."""
        return self._reference()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        function = self._reference()
        return None if function is None else function(*args, **kwargs)


class SenderFilter:
    """The senders that a handler hears: all, the instances of a class, or one object.

    An object with a `__nitro_identity__` is compared by it (class and id), `str` and `int` by value as in blinker,
    any other object by identity. The object is referenced weakly.
    """

    __slots__ = ("_reference", "cls", "key")

    def __init__(self, sender: object, on_dead: Callable[[object], None]) -> None:
        self.key = None if sender is ANY else sender_key(sender)
        self.cls = sender if isinstance(sender, type) else None
        self._reference: object = None
        if isinstance(self.key, int) and self.cls is None:
            try:
                self._reference = weakref.ref(sender, on_dead)
            except TypeError:
                self._reference = sender

    @property
    def is_alive(self) -> bool:
        """Whether the object that the handler hears still exists."""
        return not isinstance(self._reference, weakref.ref) or self._reference() is not None

    def matches(self, sender: object, key: Hashable) -> bool:
        """Whether the handler hears an emission by `sender`, whose `sender_key` is `key`."""
        if self.key is None or self.key == key:
            return True
        return self.cls is not None and isinstance(sender, self.cls)


def sender_key(sender: object) -> Hashable:
    """Returns the key by which senders are compared: entity identity, value, or `id()`."""
    if not isinstance(sender, type):
        identity = identity_of(sender)
        if identity is not None:
            return identity
        if type(sender) in (str, int):
            return (type(sender), sender)
    return id(sender)


def identity_of(sender: object) -> tuple[type, object] | None:
    """Returns class and id of an entity, or None; the lookup on the class avoids a `__getattr__` of the user."""
    if not hasattr(type(sender), "__nitro_identity__"):
        return None
    identity: tuple[type, object] | None = getattr(sender, "__nitro_identity__")  # noqa: B009  # mypy knows no class with it
    return identity


def unwrap_staticmethod(function: Any) -> Any:
    """Returns the function inside a `staticmethod` object; any other callable as it is."""
    return function.__func__ if isinstance(function, staticmethod) else function


def function_key(function: Function) -> Hashable:
    """Returns the key by which functions are compared; a bound method is a new object at each access."""
    if isinstance(function, MethodType):
        return (id(function.__self__), id(function.__func__))
    return id(function)


def kind_of(function: Function) -> FunctionKind:
    """Returns the kind of a callable, also behind a partial, a method or `__call__`."""
    while isinstance(function, partial | staticmethod):
        function = function.func if isinstance(function, partial) else function.__func__
    if not inspect.isroutine(function) and not inspect.iscoroutinefunction(function):
        function = type(function).__call__
    if inspect.iscoroutinefunction(function):
        return "async"
    if inspect.isasyncgenfunction(function):
        return "async generator"
    return "generator" if inspect.isgeneratorfunction(function) else "sync"


def default_name(function: Function) -> str:
    """Returns `module.qualname`, with the module that a worker would import; for an instance the name of its class."""
    while isinstance(function, partial):
        function = function.func
    owner = function if hasattr(function, "__qualname__") else type(function)
    return f"{importable_module(owner.__module__ or 'builtins')}.{owner.__qualname__}"


_MAIN_MODULES = ("__main__", "__mp_main__")  # __mp_main__ is the script in a child that multiprocessing has spawned


def importable_module(module: str) -> str:
    """Returns the module, or for `__main__` the name under which a worker would import that script.

    The name is that of `python -m`, else the module of `NITRO_HANDLERS` with that file, else the path of the file
    from its top package or the working folder. An interactive session keeps `__main__`.
    """
    if module not in _MAIN_MODULES:
        return module
    main = sys.modules[module]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    from pathlib import Path  # only scripts need it, and it takes a sixth of the import time of events

    file = Path(getattr(main, "__file__", None) or "").resolve()
    return _module_in_settings(file) or _module_from_packages(file) if file.is_file() else "__main__"


def _module_in_settings(file: Path) -> str | None:
    """Returns the module of `NITRO_HANDLERS` with this file, found without an import, or None."""
    from nitro.settings import Settings

    for name in Settings.load().handlers:
        for folder in sys.path:
            module = type(file)(folder, *name.split("."))
            if file in (module.with_suffix(".py").resolve(), (module / "__init__.py").resolve()):
                return name
    return None


def _module_from_packages(file: Path) -> str:
    top, working_folder = file.parent, file.cwd()
    while (top / "__init__.py").exists():
        top = top.parent
    if top == file.parent and file.is_relative_to(working_folder):
        top = working_folder
    return ".".join(file.relative_to(top).with_suffix("").parts)
