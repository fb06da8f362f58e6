"""Journal: with `NITRO_JOURNAL=on` emissions that have no delivery in the outbox are recorded too, behind the emit."""

from __future__ import annotations

import atexit
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam

from nitro.infrastructure.database import writing
from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.dispatcher import Call
from nitro.infrastructure.events.shown import shown
from nitro.infrastructure.events.watching import watchers
from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.parcel import TRACKED
from nitro.infrastructure.offload.story import Story, story_of, written
from nitro.infrastructure.outbox.inserts import INSERT
from nitro.infrastructure.outbox.tables import emissions
from nitro.infrastructure.outbox.ticker import Ticker
from nitro.infrastructure.outbox.versions import ensure_current

logger = logger_named("nitro.outbox")

GATHER = 0.05
"""Seconds in which emissions gather to be written together."""
AT_ONCE = 500
MOST = 10_000
"""Emissions that may wait to be written; more than that are not recorded."""
IDLE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An emission to be written."""

    emission: Emission
    sender: str
    story: Story

    def row(self) -> dict[str, Any]:
        """The values of its row."""
        made = self.emission
        facts = {"id": made.id, "event": made.event or None, "root": made.root, "parent": made.parent}
        return {**facts, "sender": self.sender, "story": written(self.story)}


class Journal:
    """Writes on a thread of its own what emits have noted."""

    def __init__(self) -> None:
        self._ticker = Ticker("nitro-journal")
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.flush)

    def _forget(self) -> None:
        self._notes: deque[Note] = deque()
        self._dropped = 0

    @contextmanager
    def watch(self, emission: Emission, call: Call) -> Iterator[None]:
        """Note an emission when it has ended; one with tracked deliveries has its row already."""
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            if raised is not None or not _is_tracked(emission):
                self._note(Note(emission=emission, sender=shown(call.sender), story=story_of(emission, raised)))

    def _note(self, note: Note) -> None:
        if len(self._notes) >= MOST:
            self._dropped += 1
            return
        self._notes.append(note)
        self._ticker.start(self._write)
        self._ticker.nudge(GATHER)

    def _write(self) -> float:
        """Write some of what was noted; seconds until the next time."""
        some = [self._notes[position] for position in range(min(AT_ONCE, len(self._notes)))]
        if some:
            _insert(some)
        for _ in some:
            self._notes.popleft()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            logger.warning("%d emissions are not in the journal: they came faster than they could be written", dropped)
        return 0.0 if self._notes else IDLE

    def flush(self) -> None:
        """Write all that was noted: a process ends."""
        self._ticker.stop(IDLE)
        try:
            while self._notes:
                self._write()
        except Exception:
            logger.exception("%d emissions are not in the journal", len(self._notes))


def _insert(notes: list[Note]) -> None:
    ensure_current()
    with writing() as connection:
        names = ("id", "event", "sender", "root", "parent", "story")
        new = INSERT[connection.dialect.name](emissions).values({name: bindparam(name) for name in names})
        connection.execute(new.on_conflict_do_nothing(), [note.row() for note in notes])


def _is_tracked(emission: Emission) -> bool:
    offloaded = emission.plan.offloaded if emission.plan is not None else ()
    promises = (each.offload.delivery for each in offloaded if each.offload and each.name in emission.offloaded)
    return any(promise in TRACKED for promise in promises)


journal = Journal()
"""The one of this process."""


def install() -> None:
    """Have every emission of this process noted."""
    if journal.watch not in watchers:
        watchers.append(journal.watch)
