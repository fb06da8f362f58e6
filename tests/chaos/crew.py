"""A crew of workers that are started again whenever they have ended."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping, Sequence

from tests.chaos.processes import Process, descendants, signal_all, until
from tests.chaos.world import PATIENCE, World, ready

PREFORK = ("-P", "prefork", "-c", "2")
THREADS = ("-P", "threads", "-c", "4")


class Crew:
    """The workers of a world, each with the arguments of its pool.

    Attributes:
        deaths: number of workers that ended by themselves or by an armed fault.
    """

    def __init__(self, world: World, *pools: Sequence[object], environ: Mapping[str, str] | None = None) -> None:
        self._world = world
        self._pools = pools
        self._environ = dict(environ or {})
        self.deaths = 0
        self.workers: list[Process] = [self._new(pool) for pool in pools]

    def ready(self) -> Crew:
        """Waits until all workers take messages."""
        for worker in self.workers:
            until(lambda worker=worker: ready(worker), PATIENCE, f"{worker.name} is ready")  # type: ignore[misc]  # mypy knows no such lambda
        return self

    def tend(self) -> int:
        """Starts the ended workers again, and returns their number."""
        ended = [index for index, worker in enumerate(self.workers) if not worker.alive]
        self.deaths += len(ended)
        for index in ended:
            self.renew(index)
        return len(ended)

    def disarm(self) -> None:
        """Starts workers without a fault from now on."""
        self._environ.pop("CHAOS_AT", None)

    def renew(self, index: int, environ: Mapping[str, str] | None = None) -> Process:
        """Starts a worker in the place of an ended one."""
        self.workers[index] = self._new(self._pools[index], environ)
        return self.workers[index]

    def kill_main(self, chance: random.Random) -> str:
        """Kills the main process of a worker, but not its children, and starts it again."""
        index = chance.randrange(len(self.workers))
        self.workers[index].kill()
        self.renew(index)
        return "main"

    def kill_child(self, chance: random.Random) -> str:
        """Kills a process of a prefork pool, or the main process of a worker if no pool has processes."""
        children = [pid for worker in self.workers for pid in descendants(worker.pid)]
        if not children:
            return self.kill_main(chance)
        signal_all([chance.choice(children)], signal.SIGKILL)
        return "child"

    def end(self) -> None:
        """Kills all workers."""
        for worker in self.workers:
            worker.kill_all()

    def _new(self, pool: Sequence[object], environ: Mapping[str, str] | None = None) -> Process:
        return self._world.worker(*pool, environ={**self._environ, **(environ or {})})
