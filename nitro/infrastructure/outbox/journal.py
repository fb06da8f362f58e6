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

from nitro.infrastructure.database import database_identity, engine, write_connection
from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.committing import commit_to_wait_for
from nitro.infrastructure.events.display import describe_sender
from nitro.infrastructure.events.observers import active_observers
from nitro.infrastructure.events.ports import Call
from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.envelope import TRACKED_DELIVERIES
from nitro.infrastructure.offload.report import EmissionReport, report_json, report_of, rolled_back_report
from nitro.infrastructure.outbox.inserts import INSERT_BY_DIALECT
from nitro.infrastructure.outbox.schema import MAX_NAME_CHARACTERS, emissions
from nitro.infrastructure.outbox.texts import to_storable, to_storable_id
from nitro.infrastructure.outbox.versions import ensure_current
from nitro.infrastructure.threads import JOURNAL, AtExit, ForkSafe, PeriodicThread

logger = get_logger("nitro.outbox")

BATCH_DELAY_SECONDS = 0.05
"""Seconds in which emissions gather to be written together."""
WRITE_BATCH = 500
MAX_PENDING_ENTRIES = 10_000
"""Emissions that may wait to be written; more than that are not recorded."""
IDLE_SECONDS = 60.0
EXIT_WAIT_SECONDS = 5.0
"""Seconds that the exit of the interpreter waits for the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """An emission to be written; without its results, which need not live as long."""

    id: str
    event: str
    root: str | None
    parent: str | None
    sender: str
    story: EmissionReport

    def row(self) -> dict[str, Any]:
        """The values of its row, none of which a database can refuse, which would keep all others waiting."""
        causes = {"root": to_storable_id(self.root), "parent": to_storable_id(self.parent)}
        facts = {
            "id": self.id,
            "event": to_storable(self.event)[:MAX_NAME_CHARACTERS] or None,
            "sender": to_storable(self.sender),
        }
        return {**facts, **causes, "story": report_json(self.story)}


class Journal(ForkSafe):
    """Writes on a thread of its own what emits have noted."""

    def __init__(self) -> None:
        self._thread = PeriodicThread("nitro-journal")
        self._at_exit = AtExit(self._flush_now, JOURNAL)
        super().__init__()

    def _reset(self) -> None:
        self._notes: deque[JournalEntry] = deque()
        self._dropped = 0
        self._written = threading.Condition()
        self._ended = self._has_warned_of_memory = False

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
        commit = commit_to_wait_for(call) if raised is None and emission.waits_for_commit else None
        if commit is not None:
            note = _journal_entry(emission, call, None, rows=False)
            commit.after_rollback(partial(self._note, replace(note, story=rolled_back_report(note.story))))
            if not tracked:
                commit.after_commit(partial(self._note, note))
        elif not tracked:
            self._note(_journal_entry(emission, call, raised, rows=_is_tracked(emission)))

    def _note(self, note: JournalEntry) -> None:
        if len(self._notes) >= MAX_PENDING_ENTRIES:
            self._dropped += 1
            return
        self._notes.append(note)
        self.flush_at_exit()
        self._thread.start(self._write_batch)
        self._thread.wake(BATCH_DELAY_SECONDS)
        if self._ended:
            self.flush(EXIT_WAIT_SECONDS)

    def flush_at_exit(self) -> None:
        """Have the end of this process, or of a child of multiprocessing, wait until all is written."""
        self._at_exit.arm()

    def _flush_now(self) -> None:
        self._ended = self.flush(EXIT_WAIT_SECONDS)  # what is emitted later still is written at once

    def _write_batch(self) -> float:
        """Write some of what was noted; seconds until the next time."""
        some = [self._notes[position] for position in range(min(WRITE_BATCH, len(self._notes)))]
        if some and database_identity(engine().url) is None:
            self._warn_of_memory()
        elif some:
            _insert_entries(some)
        for _ in some:
            self._notes.popleft()
        with self._written:
            self._written.notify_all()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            logger.warning("%d emissions are not in the journal: they came faster than they could be written", dropped)
        return 0.0 if self._notes else IDLE_SECONDS

    def _warn_of_memory(self) -> None:
        """Say once that nothing is recorded in memory: to write there from this thread would end open transactions."""
        if not self._has_warned_of_memory:
            self._has_warned_of_memory = True
            logger.warning(
                "nothing is in the journal: the database is in memory, and its one connection is the program's"
            )

    def flush(self, timeout: float) -> bool:
        """Wait until all that was noted is written: a process ends; whether that was so within `timeout` seconds."""
        self._thread.wake()
        with self._written:
            written = self._written.wait_for(lambda: not self._notes, timeout)
        if not written:
            logger.warning("%d emissions are not in the journal: the database does not take them", len(self._notes))
        return written


def _journal_entry(emission: Emission, call: Call, raised: BaseException | None, *, rows: bool) -> JournalEntry:
    return JournalEntry(
        id=emission.id,
        event=emission.event,
        root=emission.root,
        parent=emission.parent,
        sender=describe_sender(call.sender),
        story=report_of(emission, raised, rows=rows),
    )


def _insert_entries(notes: list[JournalEntry]) -> None:
    ensure_current()
    with write_connection() as connection:
        names = ("id", "event", "sender", "root", "parent", "story")
        new = INSERT_BY_DIALECT[connection.dialect.name](emissions).values({name: bindparam(name) for name in names})
        story = func.coalesce(emissions.c.story, new.excluded.story)  # an untracked delivery that is stored has none
        told = new.on_conflict_do_update(index_elements=["id"], set_={"story": story})
        connection.execute(told, [note.row() for note in notes])


def _is_tracked(emission: Emission) -> bool:
    """Whether it has rows of its own: one with tracked deliveries, but where Celery runs them at once."""
    offloaded = emission.plan.offloaded if emission.plan is not None else ()
    promises = (each.offload.delivery for each in offloaded if each.offload and each.name in emission.offloaded)
    return any(promise in TRACKED_DELIVERIES for promise in promises) and not current_app().conf.task_always_eager


journal = Journal()
"""The one of this process."""


def observe_emissions() -> None:
    """Have every emission of this process noted."""
    active_observers.add(journal.watch)
    journal.flush_at_exit()
