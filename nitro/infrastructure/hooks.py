"""Slots and hooks, which a layer fills so that a lower layer can call it without importing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Slot(Generic[T]):
    """The place of one object, such as the implementation of a port.

    Attributes:
        value: the object; None while the slot is empty.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: T | None = None

    @contextmanager
    def replaced(self, value: T | None) -> Iterator[None]:
        """Put another object into the slot for the time of the block."""
        earlier, self.value = self.value, value
        try:
            yield
        finally:
            self.value = earlier


class Hooks(list[T]):
    """Functions or objects that are called in the order in which they were added."""

    def add(self, hook: T) -> None:
        """Add a hook, unless it is there already."""
        if hook not in self:
            self.append(hook)

    @contextmanager
    def replaced(self, *hooks: T) -> Iterator[None]:
        """Have only these hooks for the time of the block."""
        earlier, self[:] = [*self], hooks
        try:
            yield
        finally:
            self[:] = earlier
