"""Emits until it is stopped: `python -m victim.emitter OPTIONS`, where OPTIONS is JSON; prints facts as JSON.

Each event is committed in one transaction with the row that records it. Options: `event`; `count`, the least number of
committed events; `stop`, a file whose creation ends the emitter; `pause`, seconds between two events; `loose`, the
interval in events at which an untracked event is emitted too; `gate`, a file that it waits for after the first event.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from victim import handlers, late  # noqa: F401  # declares them
from victim.tables import Committed

from nitro import emit, transaction
from nitro.infrastructure.failpoints import failpoint
from nitro.settings import Settings

LOOK_AGAIN = 0.02

for _module in Settings.load().handlers:
    import_module(_module)


@dataclass
class Facts:
    """The emitter's facts: the seconds of each emit without its commit, and the emits that raised."""

    tracked: list[float] = field(default_factory=list)
    untracked: list[float] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    refused: int = 0
    longest: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)

    def failed(self, error: Exception) -> None:
        """Counts an error by its class."""
        kind = type(error).__name__
        self.errors[kind] = self.errors.get(kind, 0) + 1


def tracked(event: str, facts: Facts) -> None:
    """Emits an event, and commits it with the row that records it."""
    began = perf_counter()
    committed = Committed(event=event)
    try:
        with transaction():
            committed.save()
            before = perf_counter()
            emit(event, "ada", key=committed.id)
            facts.tracked.append(perf_counter() - before)
            failpoint("row written")
        facts.committed.append(committed.id)
    except Exception as error:
        facts.raised.append(committed.id)
        facts.failed(error)
    facts.longest = max(facts.longest, perf_counter() - began)


def untracked(event: str, facts: Facts) -> None:
    """Emits an event whose handler has no row in the outbox."""
    committed = Committed(event=event)
    before = perf_counter()
    try:
        emit(event, "ada", key=committed.id)
    except Exception as error:
        facts.refused += 1
        facts.failed(error)
        return
    finally:
        facts.untracked.append(perf_counter() - before)
    committed.save()


def run(options: dict[str, Any]) -> Facts:
    """Emits as the options say, and returns the facts."""
    facts, event, count = Facts(), options["event"], options.get("count", 0)
    stop = Path(options["stop"]) if "stop" in options else None
    made = 0
    while len(facts.committed) + len(facts.untracked) < count or (stop is not None and not stop.exists()):
        made += 1
        if event:
            tracked(event, facts)
        if options.get("loose") and made % options["loose"] == 0:
            untracked("loose", facts)
        while "gate" in options and not Path(options["gate"]).exists():
            time.sleep(LOOK_AGAIN)
        time.sleep(options.get("pause", 0.0))
    return facts


if __name__ == "__main__":
    print(json.dumps(asdict(run(json.loads(sys.argv[1])))))
