"""Heartbeats of workers: each worker counts up a number in its row, and counts as dead when it stops.

The observer measures the time by its own monotonic clock, so a clock that is set wrong declares no living worker dead.
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
"""Seconds without a new heartbeat after which an observer takes a worker for dead."""
MAX_OBSERVATION_GAP_SECONDS = 6.0
"""Seconds between two checks after which the observer forgets its observations, because it was itself blocked."""


def record_heartbeat(worker_id: str, name: str) -> None:
    """Counts up the heartbeat of a worker; inserts its row if there is none."""
    count_up = update(workers).where(workers.c.boot == worker_id).values(beat=workers.c.beat + 1)
    with write_connection() as connection:
        if not connection.execute(count_up).rowcount:
            stored_name = to_storable(name)[:MAX_NAME_CHARACTERS]
            connection.execute(insert(workers).values(boot=worker_id, name=stored_name, beat=0))


def remove_worker(worker_id: str) -> None:
    """Deletes the row of a worker that has stopped."""
    with write_connection() as connection:
        connection.execute(delete(workers).where(workers.c.boot == worker_id))


def read_heartbeats() -> dict[str, tuple[str, int]]:
    """Returns the name and the heartbeat of each worker by its id. The row of a killed worker may stay for long."""
    with engine().connect() as connection:
        return {row.boot: (row.name, row.beat) for row in connection.execute(select(workers))}


@dataclass(slots=True)
class _Observation:
    beat: int | None
    since: float


class HeartbeatMonitor:
    """The heartbeats of workers with running deliveries, as one worker observes them.

    Args:
        worker_id: id of the observer, which does not watch itself.
        dead_after: seconds without a new heartbeat after which a worker counts as dead.
    """

    def __init__(self, worker_id: str, dead_after: float = DEAD_AFTER_SECONDS) -> None:
        self._worker_id, self._dead_after = worker_id, dead_after
        self._observations: dict[str, _Observation] = {}
        self._last_check = monotonic()

    def release_dead_workers(self) -> int:
        """Requeues the runs of dead workers, and returns their number.

        Call it right after `record_heartbeat`. If that was slow, the database is slow, and missing heartbeats prove
        nothing.
        """
        beats = _heartbeats_of_running()
        beats.pop(self._worker_id, None)
        previous_check, self._last_check = self._last_check, monotonic()
        if self._last_check - previous_check > MAX_OBSERVATION_GAP_SECONDS:
            self._observations.clear()
        self._observations = {worker_id: self._observe(worker_id, beat) for worker_id, beat in beats.items()}
        oldest = self._last_check - self._dead_after
        dead = [worker_id for worker_id, last in self._observations.items() if last.since < oldest]
        return sum(_release_dead_worker(worker_id, self._observations.pop(worker_id).beat) for worker_id in dead)

    def _observe(self, worker_id: str, beat: int | None) -> _Observation:
        last = self._observations.get(worker_id)
        return last if last is not None and last.beat == beat else _Observation(beat, self._last_check)


def _heartbeats_of_running() -> dict[str, int | None]:
    """Returns the heartbeat of every worker with a running delivery; None for a worker without a row."""
    running = select(deliveries.c.worker).where(is_open(RUNNING)).distinct()
    with engine().connect() as connection:
        boots = {str(worker).partition("/")[0] for worker in connection.scalars(running)}
        rows = connection.execute(select(workers.c.boot, workers.c.beat).where(workers.c.boot.in_(boots)))
        return dict.fromkeys(boots) | {row.boot: row.beat for row in rows}


def _release_dead_worker(worker_id: str, last_beat: int | None) -> int:
    newer_beats = select(func.count()).where(
        workers.c.boot == worker_id, workers.c.beat != (-1 if last_beat is None else last_beat)
    )
    requeued = record_losses(is_run_of_worker(worker_id) & (newer_beats.scalar_subquery() == 0), "its worker died")
    with write_connection() as connection:
        connection.execute(delete(workers).where(workers.c.boot == worker_id, workers.c.beat == last_beat))
    return requeued
