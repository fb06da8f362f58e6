"""Handlers whose processes are killed or exit; each run records itself under the `key` of its emit."""

from __future__ import annotations

import os
import time

from nitro import Offload, current_delivery, on
from project.effects import FOLDER, note
from project.handlers import LONG, Receipt

QUEUE = "mortal"


def _linger() -> None:
    """Takes long at the first attempt, so that a test can kill its worker."""
    delivery = current_delivery()
    if delivery is not None and delivery.attempt == 1:
        time.sleep(2 * LONG)


@on("mortal.once", offload=Offload(queue=QUEUE, delivery="exactly-once"))
def once(sender: str, key: str) -> None:
    delivery = current_delivery()
    Receipt(id=f"{key}.{delivery.attempt if delivery else 0}", pid=os.getpid()).save()
    note(key)
    _linger()


@on("mortal.least", offload=Offload(queue=QUEUE))
def least(sender: str, key: str) -> None:
    note(key)
    _linger()


@on("mortal.untracked", offload=Offload(queue=QUEUE, delivery="broker"))
def untracked(sender: str, key: str) -> None:
    note(key)
    end = time.monotonic() + 2 * LONG
    while not (FOLDER / f"{key}.go").exists() and time.monotonic() < end:
        time.sleep(0.05)


@on("mortal.exit", offload=Offload(queue=QUEUE))
def leave(sender: str, key: str) -> None:
    note(key)
    os._exit(1)


SOON = {"retry_backoff": False, "default_retry_delay": 0}


@on("mortal.hard", offload={"queue": QUEUE, "time_limit": 1, "max_retries": 1, **SOON})
def endless(sender: str, key: str) -> None:
    note(key)
    while True:
        time.sleep(LONG)


@on("mortal.good", offload=Offload(queue=QUEUE))
def good(sender: str, key: str) -> None:
    note(key)
