"""Journal: with `NITRO_JOURNAL=on` emissions that have no delivery in the outbox are recorded too, behind the emit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import bindparam, func

from nitro.infrastructure.database import engine, place_of, writing
from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.committing import commit_of
from nitro.infrastructure.events.dispatcher import Call
from nitro.infrastructure.events.shown import shown
from nitro.infrastructure.events.watching import watchers
from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.parcel import TRACKED
from nitro.infrastructure.offload.story import Story, story_of, undone, written
from nitro.infrastructure.outbox.inserts import INSERT
from nitro.infrastructure.outbox.tables import NAME, emissions
from nitro.infrastructure.outbox.texts import identity, storable
from nitro.infrastructure.outbox.versions import ensure_current
from nitro.infrastructure.threads import JOURNAL, AtExit, ForkSafe, PeriodicThread

logger = logger_named("nitro.outbox")

GATHER = 0.05
"""Seconds in which emissions gather to be written together."""
AT_ONCE = 500
MOST = 10_000
"""Emissions that may wait to be written; more than that are not recorded."""
IDLE = 60.0
EXIT_WAIT = 5.0
"""Seconds that the exit of the interpreter waits for the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An emission to be written; without its results, which need not live as long."""

    id: str
    event: str
    root: str | None
    parent: str | None
    sender: str
    story: Story

    def row(self) -> dict[str, Any]:
        """The values of its row, none of which a database can refuse, which would keep all others waiting."""
        causes = {"root": identity(self.root), "parent": identity(self.parent)}
        facts = {"id": self.id, "event": storable(self.event)[:NAME] or None, "sender": storable(self.sender)}
        return {**facts, **causes, "story": written(self.story)}


class Journal(ForkSafe):
    """Writes on a thread of its own what emits have noted."""

    def __init__(self) -> None:
        self._thread = PeriodicThread("nitro-journal")
        self._at_exit = AtExit(self._end, JOURNAL)
        super().__init__()

    def _reset(self) -> None:
        self._notes: deque[Note] = deque()
        self._dropped = 0
        self._all_written = threading.Condition()
        self._ended = self._refused = False

    @contextmanager
    def watch(self, emission: Emission, call: Call) -> Iterator[None]:
        """Note an emission when it has ended; one with tracked deliveries has its row already, unless it is undone."""
        identity = emission.id  # tells when it was made, and so is made now
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            try:
                self._tell(emission, call, raised)
            except Exception:  # of the user's classes, such as a sender that cannot be shown
                logger.exception("emission %s is not in the journal", identity)

    def _tell(self, emission: Emission, call: Call, raised: BaseException | None) -> None:
        """Note an emission now, or when it is known whether the commit that it waits for has come."""
        tracked = raised is None and _is_tracked(emission)
        commit = commit_of(call) if raised is None and emission.waits else None
        if commit is not None:
            note = _note_of(emission, call, None, rows=False)
            commit.after_rollback(partial(self._note, replace(note, story=undone(note.story))))
            if not tracked:
                commit.after_commit(partial(self._note, note))
        elif not tracked:
            self._note(_note_of(emission, call, raised, rows=_is_tracked(emission)))

    def _note(self, note: Note) -> None:
        if len(self._notes) >= MOST:
            self._dropped += 1
            return
        self._notes.append(note)
        self.end_well()
        self._thread.start(self._write)
        self._thread.wake(GATHER)
        if self._ended:
            self.flush(EXIT_WAIT)

    def end_well(self) -> None:
        """Have the end of this process, or of a child of multiprocessing, wait until all is written."""
        self._at_exit.arm()

    def _end(self) -> None:
        self._ended = self.flush(EXIT_WAIT)  # what is emitted later still is written at once

    def _write(self) -> float:
        """Write some of what was noted; seconds until the next time."""
        some = [self._notes[position] for position in range(min(AT_ONCE, len(self._notes)))]
        if some and place_of(engine().url) is None:
            self._refuse()
        elif some:
            _insert(some)
        for _ in some:
            self._notes.popleft()
        with self._all_written:
            self._all_written.notify_all()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            logger.warning("%d emissions are not in the journal: they came faster than they could be written", dropped)
        return 0.0 if self._notes else IDLE

    def _refuse(self) -> None:
        """Say once that nothing is recorded in memory: to write there from this thread would end open transactions."""
        if not self._refused:
            self._refused = True
            logger.warning(
                "nothing is in the journal: the database is in memory, and its one connection is the program's"
            )

    def flush(self, timeout: float) -> bool:
        """Wait until all that was noted is written: a process ends; whether that was so within `timeout` seconds."""
        self._thread.wake()
        with self._all_written:
            written = self._all_written.wait_for(lambda: not self._notes, timeout)
        if not written:
            logger.warning("%d emissions are not in the journal: the database does not take them", len(self._notes))
        return written


def _note_of(emission: Emission, call: Call, raised: BaseException | None, *, rows: bool) -> Note:
    return Note(
        id=emission.id,
        event=emission.event,
        root=emission.root,
        parent=emission.parent,
        sender=shown(call.sender),
        story=story_of(emission, raised, rows=rows),
    )


def _insert(notes: list[Note]) -> None:
    ensure_current()
    with writing() as connection:
        names = ("id", "event", "sender", "root", "parent", "story")
        new = INSERT[connection.dialect.name](emissions).values({name: bindparam(name) for name in names})
        story = func.coalesce(emissions.c.story, new.excluded.story)  # an untracked delivery that is stored has none
        told = new.on_conflict_do_update(index_elements=["id"], set_={"story": story})
        connection.execute(told, [note.row() for note in notes])


def _is_tracked(emission: Emission) -> bool:
    """Whether it has rows of its own: one with tracked deliveries, but where Celery runs them at once."""
    offloaded = emission.plan.offloaded if emission.plan is not None else ()
    promises = (each.offload.delivery for each in offloaded if each.offload and each.name in emission.offloaded)
    return any(promise in TRACKED for promise in promises) and not current_app().conf.task_always_eager


journal = Journal()
"""The one of this process."""


def install() -> None:
    """Have every emission of this process noted."""
    if journal.watch not in watchers:
        watchers.append(journal.watch)
        journal.end_well()
