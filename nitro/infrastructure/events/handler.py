"""Handler: one registration of a function, its stable name and how it wants to be called."""

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
    """What the checked options of an offloaded handler look like from here."""

    @property
    def delivery(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Handler:
    """A function as it was connected to one event.

    Attributes:
        call: runs the function; for a weak one, only while it lives.
        key: which function it is; the same for two registrations of one function.
        name: stable name, of the Celery task too.
        is_async: whether its kind needs an event loop.
        sender: hears only this one; `ANY` hears all.
        offload: checked options of its Celery task, or None for an inline handler.
        order: when it was connected, counted over all events.
        definition: where it is written, unless it is not in Python.
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
        """The connected function, or None when a weak one is gone."""
        return self.call.function if isinstance(self.call, WeakFunction) else self.call

    @property
    def is_alive(self) -> bool:
        """Whether its function and its sender still exist."""
        return self.function is not None and self.sender.is_alive

    def has_same_origin_as(self, other: Handler) -> bool:
        """Whether both are of the same function, or of one factory, so that neither is the other anew."""
        mine, its = self.definition, other.definition
        return mine is not None and its is not None and mine.has_same_origin_as(its)

    def replaces(self, old: Handler) -> bool:
        """Whether it is `old` anew; of one task name there is one function, also where a factory makes many."""
        if self.definition is None or old.definition is None or self.name != old.name:
            return False
        one_task = self.offload is not None and old.offload is not None
        return self.definition.redefines(old.definition) or (
            one_task and self.definition.shares_code_with(old.definition)
        )


class WeakFunction:
    """A function that may vanish: calling it then does nothing."""

    __slots__ = ("_reference",)

    def __init__(self, function: Function, when_gone: Callable[[object], None]) -> None:
        make = weakref.WeakMethod if isinstance(function, MethodType) else weakref.ref
        self._reference: Callable[[], Function | None] = make(function, when_gone)

    @property
    def function(self) -> Function | None:
        """The function while it lives."""
        return self._reference()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        function = self._reference()
        return None if function is None else function(*args, **kwargs)


class SenderFilter:
    """Which senders a handler hears: all, the instances of a class, or one object.

    An object with a `__nitro_identity__` (class and id) is recognised by it; `str` and `int` by
    value, as in blinker; any other object by being the same one, and is not kept alive.
    """

    __slots__ = ("_reference", "cls", "key")

    def __init__(self, sender: object, when_gone: Callable[[object], None]) -> None:
        self.key = None if sender is ANY else sender_key(sender)
        self.cls = sender if isinstance(sender, type) else None
        self._reference: object = None
        if isinstance(self.key, int) and self.cls is None:
            try:
                self._reference = weakref.ref(sender, when_gone)
            except TypeError:
                self._reference = sender

    @property
    def is_alive(self) -> bool:
        """Whether the object that is heard still exists."""
        return not isinstance(self._reference, weakref.ref) or self._reference() is not None

    def matches(self, sender: object, key: Hashable) -> bool:
        """Whether an emission by `sender`, whose key is `key`, is heard."""
        if self.key is None or self.key == key:
            return True
        return self.cls is not None and isinstance(sender, self.cls)


def sender_key(sender: object) -> Hashable:
    """What tells a sender from another: its entity identity, its value, or its address."""
    if not isinstance(sender, type):
        identity = identity_of(sender)
        if identity is not None:
            return identity
        if type(sender) in (str, int):
            return (type(sender), sender)
    return id(sender)


def identity_of(sender: object) -> tuple[type, object] | None:
    """Class and id of an entity, or None; its class is asked, so that a `__getattr__` of the user's is not."""
    if not hasattr(type(sender), "__nitro_identity__"):
        return None
    identity: tuple[type, object] | None = getattr(sender, "__nitro_identity__")  # noqa: B009  # no class has it to mypy
    return identity


def unwrap_staticmethod(function: Any) -> Any:
    """The function of a static method, which is an object of its own; anything else as it is."""
    return function.__func__ if isinstance(function, staticmethod) else function


def function_key(function: Function) -> Hashable:
    """What tells a function from another; bound methods are made anew at each access."""
    if isinstance(function, MethodType):
        return (id(function.__self__), id(function.__func__))
    return id(function)


def kind_of(function: Function) -> FunctionKind:
    """Which of the four kinds a callable is, also behind a partial, a method or `__call__`."""
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
    """`module.qualname`, with the module that a worker would import; of an instance, its class's."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{importable_module(named.__module__ or 'builtins')}.{named.__qualname__}"


_MAIN_MODULES = ("__main__", "__mp_main__")  # the second is the script again, in a child that multiprocessing spawned


def importable_module(module: str) -> str:
    """`module`, or for `__main__` the name under which a worker would import that script.

    That is the `-m` name, else the module of `NITRO_HANDLERS` with that file, else the path as a
    package. In an interactive session there is none, and `__main__` stays.
    """
    if module not in _MAIN_MODULES:
        return module
    main = sys.modules[module]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    from pathlib import Path  # a sixth of the time that importing events takes, which only a script needs

    file = Path(getattr(main, "__file__", None) or "").resolve()
    return _module_in_settings(file) or _module_from_packages(file) if file.is_file() else "__main__"


def _module_in_settings(file: Path) -> str | None:
    """The module of `NITRO_HANDLERS` that this file is; found without importing a package of it."""
    from nitro.settings import Settings

    for name in Settings.load().handlers:
        for folder in sys.path:
            module = type(file)(folder, *name.split("."))
            if file in (module.with_suffix(".py").resolve(), (module / "__init__.py").resolve()):
                return name
    return None


def _module_from_packages(file: Path) -> str:
    top, here = file.parent, file.cwd()
    while (top / "__init__.py").exists():
        top = top.parent
    if top == file.parent and file.is_relative_to(here):
        top = here
    return ".".join(file.relative_to(top).with_suffix("").parts)
