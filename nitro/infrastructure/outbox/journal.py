"""The journal records emissions without a tracked delivery, on a thread of its own, with `NITRO_JOURNAL=on`."""

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
from nitro.infrastructure.threads import JOURNAL_EXIT_PRIORITY, AtExit, ForkSafe, PeriodicThread

logger = get_logger("nitro.outbox")

BATCH_DELAY_SECONDS = 0.05
"""Seconds after the first entry until a batch of entries is written."""
WRITE_BATCH = 500
"""Entries that are written by one statement."""
MAX_PENDING_ENTRIES = 10_000
"""Entries that may wait to be written; further emissions are not recorded."""
IDLE_SECONDS = 60.0
EXIT_WAIT_SECONDS = 5.0
"""Seconds that the exit of the process waits for the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """An emission that waits to be written. It does not keep the results of the handlers alive."""

    id: str
    event: str
    root: str | None
    parent: str | None
    sender: str
    story: EmissionReport

    def column_values(self) -> dict[str, Any]:
        """Returns the values of its row, cut and escaped: a refused row would hold up all later ones."""
        causes = {"root": to_storable_id(self.root), "parent": to_storable_id(self.parent)}
        columns = {
            "id": self.id,
            "event": to_storable(self.event)[:MAX_NAME_CHARACTERS] or None,
            "sender": to_storable(self.sender),
        }
        return {**columns, **causes, "story": report_json(self.story)}


class Journal(ForkSafe):
    """Collects entries from emits, and writes them on a thread of its own."""

    def __init__(self) -> None:
        self._thread = PeriodicThread("nitro-journal")
        self._at_exit = AtExit(self._flush_now, JOURNAL_EXIT_PRIORITY)
        super().__init__()

    def _reset(self) -> None:
        self._entries: deque[JournalEntry] = deque()
        self._dropped = 0
        self._written = threading.Condition()
        self._is_exiting = self._has_warned_of_memory = False

    @contextmanager
    def watch(self, emission: Emission, call: Call) -> Iterator[None]:
        """Records an emission at its end. Tracked deliveries write the row themselves, unless they are rolled back."""
        identity = emission.id  # the id is generated here, because it holds the start time
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            try:
                self._record(emission, call, raised)
            except Exception:  # raised by user code, such as `__nitro_show__` of a sender
                logger.exception("emission %s is not in the journal", identity)

    def _record(self, emission: Emission, call: Call, raised: BaseException | None) -> None:
        """Records an emission now, or after the commit or rollback that it waits for."""
        tracked = raised is None and _is_tracked(emission)
        commit = commit_to_wait_for(call) if raised is None and emission.waits_for_commit else None
        if commit is not None:
            entry = _journal_entry(emission, call, None, rows=False)
            commit.after_rollback(partial(self._append, replace(entry, story=rolled_back_report(entry.story))))
            if not tracked:
                commit.after_commit(partial(self._append, entry))
        elif not tracked:
            self._append(_journal_entry(emission, call, raised, rows=_is_tracked(emission)))

    def _append(self, entry: JournalEntry) -> None:
        if len(self._entries) >= MAX_PENDING_ENTRIES:
            self._dropped += 1
            return
        self._entries.append(entry)
        self.flush_at_exit()
        self._thread.start(self._write_batch)
        self._thread.wake(BATCH_DELAY_SECONDS)
        if self._is_exiting:
            self.flush(EXIT_WAIT_SECONDS)

    def flush_at_exit(self) -> None:
        """Makes the exit of this process, or of a multiprocessing child, wait until all entries are written."""
        self._at_exit.arm()

    def _flush_now(self) -> None:
        self._is_exiting = self.flush(EXIT_WAIT_SECONDS)  # entries of later emits are then written at once

    def _write_batch(self) -> float:
        """Writes a batch of entries, and returns the seconds until the next batch."""
        batch = [self._entries[position] for position in range(min(WRITE_BATCH, len(self._entries)))]
        if batch and database_identity(engine().url) is None:
            self._warn_of_memory()
        elif batch:
            _insert_entries(batch)
        for _ in batch:
            self._entries.popleft()
        with self._written:
            self._written.notify_all()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            logger.warning("%d emissions are not in the journal: they came faster than they could be written", dropped)
        return 0.0 if self._entries else IDLE_SECONDS

    def _warn_of_memory(self) -> None:
        """Warns once that an in-memory database gets no journal: a write here would end open transactions."""
        if not self._has_warned_of_memory:
            self._has_warned_of_memory = True
            logger.warning(
                "the journal records nothing: an in-memory database has one connection, which the program itself uses"
            )

    def flush(self, timeout: float) -> bool:
        """Waits at most `timeout` seconds until all entries are written, and returns whether they are."""
        self._thread.wake()
        with self._written:
            written = self._written.wait_for(lambda: not self._entries, timeout)
        if not written:
            logger.warning("%d emissions are not in the journal: the database does not take them", len(self._entries))
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


def _insert_entries(entries: list[JournalEntry]) -> None:
    ensure_current()
    with write_connection() as connection:
        names = ("id", "event", "sender", "root", "parent", "story")
        new = INSERT_BY_DIALECT[connection.dialect.name](emissions).values({name: bindparam(name) for name in names})
        # The row of a stored untracked delivery has no story yet.
        story = func.coalesce(emissions.c.story, new.excluded.story)
        upsert = new.on_conflict_do_update(index_elements=["id"], set_={"story": story})
        connection.execute(upsert, [entry.column_values() for entry in entries])


def _is_tracked(emission: Emission) -> bool:
    """Whether an emission has tracked deliveries; under `task_always_eager` they have no rows."""
    offloaded = emission.plan.offloaded if emission.plan is not None else ()
    delivery_options = (each.offload.delivery for each in offloaded if each.offload and each.name in emission.offloaded)
    return any(option in TRACKED_DELIVERIES for option in delivery_options) and not current_app().conf.task_always_eager


journal = Journal()
"""The journal of this process."""


def observe_emissions() -> None:
    """Registers the journal as an observer of every emission of this process."""
    active_observers.add(journal.watch)
    journal.flush_at_exit()
