"""The census of workers: each counts up a beat, and one that no longer does is dead.

Only the observer's own monotonic clock is asked, so that no clock that is set wrong takes a living worker for dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from sqlalchemy import delete, func, insert, select, update

from nitro.infrastructure.database import engine, write_connection
from nitro.infrastructure.outbox.claims import is_run_of_worker, record_losses
from nitro.infrastructure.outbox.schema import MAX_NAME_CHARACTERS, RUNNING, deliveries, is_open, workers
from nitro.infrastructure.outbox.texts import to_storable

DEAD_AFTER_SECONDS = 20.0
"""Seconds for which an observer must have seen no beat."""
MAX_OBSERVATION_GAP_SECONDS = 6.0
"""Seconds between two looks after which the observer was itself kept from looking, and begins anew."""


def record_heartbeat(boot: str, name: str) -> None:
    """Say that this worker lives."""
    alive = update(workers).where(workers.c.boot == boot).values(beat=workers.c.beat + 1)
    with write_connection() as connection:
        if not connection.execute(alive).rowcount:
            connection.execute(insert(workers).values(boot=boot, name=to_storable(name)[:MAX_NAME_CHARACTERS], beat=0))


def remove_worker(boot: str) -> None:
    """Take a worker that has stopped out of the census."""
    with write_connection() as connection:
        connection.execute(delete(workers).where(workers.c.boot == boot))


def read_heartbeats() -> dict[str, tuple[str, int]]:
    """Name and beat of each worker in the census, by boot id; one that was killed may be there for long."""
    with engine().connect() as connection:
        return {row.boot: (row.name, row.beat) for row in connection.execute(select(workers))}


@dataclass(slots=True)
class _Observation:
    beat: int | None
    since: float


class HeartbeatMonitor:
    """One worker's sightings of the others that run something.

    Args:
        boot: the observer, who does not watch himself.
        dead_after: seconds.
    """

    def __init__(self, boot: str, dead_after: float = DEAD_AFTER_SECONDS) -> None:
        self._boot, self._dead_after = boot, dead_after
        self._observations: dict[str, _Observation] = {}
        self._last_check = monotonic()

    def release_dead_workers(self) -> int:
        """Take back the runs of workers that have been seen without a beat for long enough; how many.

        To be called by who has just written a beat of his own: when even that took long, others may not have got to
        theirs, and nothing has been seen.
        """
        beats = {boot: beat for boot, beat in _heartbeats_of_running().items() if boot != self._boot}
        before, self._last_check = self._last_check, monotonic()
        if self._last_check - before > MAX_OBSERVATION_GAP_SECONDS:
            self._observations.clear()
        self._observations = {boot: self._observe(boot, beat) for boot, beat in beats.items()}
        dead = [boot for boot, seen in self._observations.items() if self._last_check - seen.since > self._dead_after]
        return sum(_release_dead_worker(boot, self._observations.pop(boot).beat) for boot in dead)

    def _observe(self, boot: str, beat: int | None) -> _Observation:
        seen = self._observations.get(boot)
        return seen if seen is not None and seen.beat == beat else _Observation(beat, self._last_check)


def _heartbeats_of_running() -> dict[str, int | None]:
    """The beat of every worker that runs something; None of one that is not in the census."""
    running = select(deliveries.c.worker).where(is_open(RUNNING)).distinct()
    with engine().connect() as connection:
        boots = {str(worker).partition("/")[0] for worker in connection.scalars(running)}
        found = connection.execute(select(workers.c.boot, workers.c.beat).where(workers.c.boot.in_(boots)))
        return dict.fromkeys(boots) | {row.boot: row.beat for row in found}


def _release_dead_worker(boot: str, last: int | None) -> int:
    still = select(func.count()).where(workers.c.boot == boot, workers.c.beat != (-1 if last is None else last))
    taken = record_losses(is_run_of_worker(boot) & (still.scalar_subquery() == 0), "its worker died")
    with write_connection() as connection:
        connection.execute(delete(workers).where(workers.c.boot == boot, workers.c.beat == last))
    return taken
