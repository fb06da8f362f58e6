"""A program whose handler belongs to the worker: `python -m project.script KEY`, or by its path."""

from __future__ import annotations

import sys

from nitro import Entity, emit, on
from project.effects import note


class Parcel(Entity, table=True):
    """An entity of a module that is also run as a program."""

    weight: int


@on("script.ran", offload=True)
def handle(sender: Parcel, key: str) -> None:
    note(key, weight=sender.weight, kind=f"{type(sender).__module__}.{type(sender).__qualname__}")


if __name__ == "__main__":
    emit("script.ran", Parcel(weight=3), key=sys.argv[1])
