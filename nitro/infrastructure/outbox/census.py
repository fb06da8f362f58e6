"""The census of workers: each counts up a beat, and one that no longer does is dead.

Only the observer's own monotonic clock is asked, so that no clock that is set wrong takes a living worker for dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from sqlalchemy import delete, func, insert, select, update

from nitro.infrastructure.database import engine, writing
from nitro.infrastructure.outbox.claims import lose, runs_of
from nitro.infrastructure.outbox.tables import NAME, RUNNING, deliveries, is_open, workers
from nitro.infrastructure.outbox.texts import storable

DEAD_AFTER = 20.0
"""Seconds for which an observer must have seen no beat."""
BLIND_AFTER = 6.0
"""Seconds between two looks after which the observer was itself kept from looking, and begins anew."""


def beat(boot: str, name: str) -> None:
    """Say that this worker lives."""
    alive = update(workers).where(workers.c.boot == boot).values(beat=workers.c.beat + 1)
    with writing() as connection:
        if not connection.execute(alive).rowcount:
            connection.execute(insert(workers).values(boot=boot, name=storable(name)[:NAME], beat=0))


def leave(boot: str) -> None:
    """Take a worker that has stopped out of the census."""
    with writing() as connection:
        connection.execute(delete(workers).where(workers.c.boot == boot))


def beats() -> dict[str, tuple[str, int]]:
    """Name and beat of each worker in the census, by boot id; one that was killed may be there for long."""
    with engine().connect() as connection:
        return {row.boot: (row.name, row.beat) for row in connection.execute(select(workers))}


@dataclass(slots=True)
class _Sighting:
    beat: int | None
    since: float


class Census:
    """One worker's sightings of the others that run something.

    Args:
        boot: the observer, who does not watch himself.
        dead_after: seconds.
    """

    def __init__(self, boot: str, dead_after: float = DEAD_AFTER) -> None:
        self._boot, self._dead_after = boot, dead_after
        self._sightings: dict[str, _Sighting] = {}
        self._looked = monotonic()

    def bury_the_dead(self) -> int:
        """Take back the runs of workers that have been seen without a beat for long enough; how many.

        To be called by who has just written a beat of his own: when even that took long, others may not have got to
        theirs, and nothing has been seen.
        """
        beats = {boot: beat for boot, beat in _beats().items() if boot != self._boot}
        before, self._looked = self._looked, monotonic()
        if self._looked - before > BLIND_AFTER:
            self._sightings.clear()
        self._sightings = {boot: self._sight(boot, beat) for boot, beat in beats.items()}
        dead = [boot for boot, seen in self._sightings.items() if self._looked - seen.since > self._dead_after]
        return sum(_bury(boot, self._sightings.pop(boot).beat) for boot in dead)

    def _sight(self, boot: str, beat: int | None) -> _Sighting:
        seen = self._sightings.get(boot)
        return seen if seen is not None and seen.beat == beat else _Sighting(beat, self._looked)


def _beats() -> dict[str, int | None]:
    """The beat of every worker that runs something; None of one that is not in the census."""
    running = select(deliveries.c.worker).where(is_open(RUNNING)).distinct()
    with engine().connect() as connection:
        boots = {str(worker).partition("/")[0] for worker in connection.scalars(running)}
        found = connection.execute(select(workers.c.boot, workers.c.beat).where(workers.c.boot.in_(boots)))
        return dict.fromkeys(boots) | {row.boot: row.beat for row in found}


def _bury(boot: str, last: int | None) -> int:
    still = select(func.count()).where(workers.c.boot == boot, workers.c.beat != (-1 if last is None else last))
    taken = lose(runs_of(boot) & (still.scalar_subquery() == 0), "its worker died")
    with writing() as connection:
        connection.execute(delete(workers).where(workers.c.boot == boot, workers.c.beat == last))
    return taken
