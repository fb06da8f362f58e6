"""Crew: workers that are started again whenever they have ended."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping, Sequence

from tests.chaos.processes import Process, descendants, signal_all, until
from tests.chaos.world import PATIENCE, World, ready

PREFORK = ("-P", "prefork", "-c", "2")
THREADS = ("-P", "threads", "-c", "4")


class Crew:
    """So many workers of a world, each with the arguments of its pool.

    Attributes:
        deaths: how many were found to have ended by themselves, or of a fault of their own.
    """

    def __init__(self, world: World, *pools: Sequence[object], environ: Mapping[str, str] | None = None) -> None:
        self._world = world
        self._pools = pools
        self._environ = dict(environ or {})
        self.deaths = 0
        self.workers: list[Process] = [self._new(pool) for pool in pools]

    def ready(self) -> Crew:
        """Wait until all take messages."""
        for worker in self.workers:
            until(lambda worker=worker: ready(worker), PATIENCE, f"{worker.name} is ready")  # type: ignore[misc]  # mypy knows no such lambda
        return self

    def tend(self) -> int:
        """Start those again that have ended; how many."""
        ended = [index for index, worker in enumerate(self.workers) if not worker.alive]
        self.deaths += len(ended)
        for index in ended:
            self.renew(index)
        return len(ended)

    def disarm(self) -> None:
        """Have those that are started from now on be without a fault."""
        self._environ.pop("CHAOS_AT", None)

    def renew(self, index: int, environ: Mapping[str, str] | None = None) -> Process:
        """Start one in the place of one that has ended."""
        self.workers[index] = self._new(self._pools[index], environ)
        return self.workers[index]

    def kill_main(self, chance: random.Random) -> str:
        """Kill the main process of one; its children are left to themselves."""
        index = chance.randrange(len(self.workers))
        self.workers[index].kill()
        self.renew(index)
        return "main"

    def kill_child(self, chance: random.Random) -> str:
        """Kill a process of a prefork pool; the main process of one where there is none."""
        children = [pid for worker in self.workers for pid in descendants(worker.pid)]
        if not children:
            return self.kill_main(chance)
        signal_all([chance.choice(children)], signal.SIGKILL)
        return "child"

    def end(self) -> None:
        """Kill them all."""
        for worker in self.workers:
            worker.kill_all()

    def _new(self, pool: Sequence[object], environ: Mapping[str, str] | None = None) -> Process:
        return self._world.worker(*pool, environ={**self._environ, **(environ or {})})
