"""Effects: what handlers leave behind for the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nitro import current_delivery

FOLDER = Path(os.environ["ACCEPTANCE_EFFECTS"])


def note(key: str, **facts: object) -> None:
    """Append one line about the running handler to the file of that key."""
    delivery = current_delivery()
    if delivery is not None:
        shown = ("handler", "attempt", "idempotency_key", "emission", "root")
        facts = {**{name: getattr(delivery, name) for name in shown}, **facts}
    with (FOLDER / key).open("a") as file:
        file.write(json.dumps({"pid": os.getpid(), **facts}) + "\n")
