"""Effects of handlers, in files for the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nitro import current_delivery

FOLDER = Path(os.environ["ACCEPTANCE_EFFECTS"])


def note(key: str, **facts: object) -> None:
    """Appends a line about the running handler to the file of the key."""
    delivery = current_delivery()
    if delivery is not None:
        names = ("handler", "attempt", "idempotency_key", "emission", "root")
        facts = {**{name: getattr(delivery, name) for name in names}, **facts}
    with (FOLDER / key).open("a") as file:
        file.write(json.dumps({"pid": os.getpid(), **facts}) + "\n")
