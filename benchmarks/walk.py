"""The files of Nitro that a tracked emit and a worker's run pass through: `make walk`, or `python -m benchmarks.walk`.

The sender is an entity, the event has one offloaded handler, and the process is warm. Deliveries are kept in SQLite.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType

HOME = f"{Path(__file__).parent.parent / 'nitro'}{os.sep}"
WARM_UP = 20


@dataclass
class Walk:
    """The calls of Nitro's functions in each thread, in order.

    Attributes:
        calls: for each thread, the file and the function of each call.
    """

    calls: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    is_on: bool = False

    def trace(self, frame: FrameType, kind: str, _argument: object) -> None:
        """Records a call of one of Nitro's functions, as `sys.setprofile` reports it."""
        name = frame.f_code.co_filename
        if self.is_on and kind == "call" and name.startswith(HOME):
            file = name.removeprefix(HOME).removeprefix("infrastructure/")
            self.calls.setdefault(threading.get_ident(), []).append((file, frame.f_code.co_qualname))

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records the calls of the block, and of threads that were started after `setprofile`."""
        self.calls.clear()
        self.is_on = True
        yield
        self.is_on = False

    @property
    def files(self) -> list[str]:
        """The files in the order of their first call, each once."""
        return list(dict.fromkeys(file for calls in self.calls.values() for file, _ in calls))

    @property
    def hops(self) -> int:
        """The number of calls in another file than the call before."""
        return sum(a != b for calls in self.calls.values() for (a, _), (b, _) in pairwise(calls))

    @property
    def summary(self) -> str:
        """The figures, in one line."""
        return f"{len(self.files)} files, {self.hops} hops, {sum(map(len, self.calls.values()))} calls"


def walks(broker: str | None) -> dict[str, Walk]:
    """Returns the walk of a tracked emit and the walk of a worker's run, in a warm process.

    Args:
        broker: URL of the broker; None for the embedded broker.
    """
    walk = Walk()
    threading.setprofile(walk.trace)
    sys.setprofile(walk.trace)
    from celery import Celery
    from celery.contrib.testing.worker import start_worker

    import nitro
    from benchmarks.shop import Order
    from nitro.infrastructure.offload import bind
    from nitro.infrastructure.offload.publishing.publisher import publisher
    from nitro.infrastructure.worker.attempt import run_tracked

    app = Celery("walk", broker=broker)
    app.conf.update(task_default_queue=f"walk-{os.getpid()}", task_ignore_result=True)
    bind(app)
    placed, run_ended = nitro.event("order.placed"), threading.Semaphore(0)

    @nitro.on(placed, offload=True, name="walk.notify")
    def notify(sender: Order) -> None:
        run_ended.release()

    order = Order(customer="ada", email="ada@example.com", city="London").save()
    measured: dict[str, Walk] = {}
    for _ in range(WARM_UP):
        placed.emit(order)
    assert publisher.drain(20)
    with walk.recorded():
        placed.emit(order)
        assert publisher.drain(20)
    measured["a tracked emit"] = Walk(dict(walk.calls))
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        for _ in range(WARM_UP + 1):
            assert run_ended.acquire(timeout=30)
        with walk.recorded():
            placed.emit(order)
            assert run_ended.acquire(timeout=30)
        emitter = threading.get_ident()
        runs = {
            thread: calls
            for thread, calls in walk.calls.items()
            if any(call[1] == run_tracked.__name__ for call in calls)
        }
        assert runs
        assert emitter not in runs
        measured["a worker's run"] = Walk(runs)
    return measured


def main() -> None:
    """Prints the figures of each walk, and its files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", help="URL of the broker; the embedded broker without it")
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(NITRO_HOME=home, NITRO_DB_URL=f"sqlite:///{home}/nitro.db")
        for name, walk in walks(parser.parse_args().broker).items():
            print(f"{name}: {walk.summary}")
            print(*(f"  {file}" for file in walk.files), sep="\n")


if __name__ == "__main__":
    main()
