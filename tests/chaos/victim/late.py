"""A handler in a module that some workers do not import."""

from __future__ import annotations

from victim.handlers import ONCE, effect

from nitro import Offload, on


@on("late", offload=Offload(**ONCE))
def late(sender: str, key: str) -> None:
    effect(key, "late")
