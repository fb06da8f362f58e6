"""A handler with an effect outside of the database, which kills its process in the middle of the first attempt."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from nitro import Offload, current_delivery, on

FOLDER = Path(os.environ["CHAOS_FOLDER"], "charges")
GROUPS = 8
"""The number of charges of which one kills the whole worker."""


@on("charged", offload=Offload(delivery="at-least-once", ignore_result=True))
def charge(sender: str, key: str) -> None:
    delivery = current_delivery()
    assert delivery is not None
    file = FOLDER / delivery.idempotency_key
    first = not (file.exists() and file.read_text())
    with file.open("a") as charges:
        charges.write(f"{key} {delivery.attempt}\n")
    if first:
        if int(key[-2:], 16) % GROUPS == 0:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
