"""Knowledge: what workers say of themselves, of which it follows why a delivery is stuck."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from celery import Celery
from celery.worker import state

from nitro.infrastructure.outbox.health import DeliveryGroup
from nitro.infrastructure.outbox.schema import RUNNING, WAITING

OUTBOX_COMMAND = "nitro_outbox"
"""The inspect command that tells whether a worker relays."""
MIN_NAME_SIMILARITY = 0.5
"""How alike two names are at least, of which one is shown for the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker.

    Attributes:
        queues: that it consumes; None when it does not say.
        tasks: that it knows, each with its rate limit.
        active: names of the tasks that run.
        processes: how many may run at once; None when it does not say.
        relays: whether it moves what waits to the broker; None when it does not say.
        boot: its id in the census of its outbox, which may be another outbox; None when it does not say.
    """

    name: str
    queues: frozenset[str] | None
    tasks: Mapping[str, str | None]
    active: Sequence[str] = ()
    processes: int | None = None
    relays: bool | None = None
    boot: str | None = None

    def consumes(self, queue: str) -> bool:
        """Whether it may get messages of a queue."""
        return self.queues is None or queue in self.queues

    @property
    def is_busy(self) -> bool:
        """Whether nothing more can run in it now."""
        return self.processes is not None and len(self.active) >= self.processes


def inspect_workers(app: Celery, timeout: float) -> list[WorkerInfo]:
    """The workers that answer over the broker: the first question takes `timeout` seconds, the others no longer."""
    registered: Mapping[str, Any] = app.control.inspect(timeout=timeout).registered() or {}
    if not registered:
        return []
    ask = app.control.inspect(timeout=timeout, destination=sorted(registered))
    queues, active, stats = (question() or {} for question in (ask.active_queues, ask.active, ask.stats))
    told = app.control.broadcast(OUTBOX_COMMAND, reply=True, timeout=timeout, destination=sorted(registered)) or []
    outbox = {name: answer for each in told for name, answer in each.items() if isinstance(answer, dict)}
    return [
        WorkerInfo(
            name=name,
            queues=frozenset(queue["name"] for queue in queues[name]) if _is_list(queues.get(name)) else None,
            tasks=dict(map(_parse_task, tasks)) if _is_list(tasks) else {},
            active=[str(each["name"]) for each in active[name]] if _is_list(active.get(name)) else (),
            processes=(stats.get(name) or {}).get("pool", {}).get("max-concurrency"),
            relays=(outbox.get(name) or {}).get("relays"),
            boot=(outbox.get(name) or {}).get("boot"),
        )
        for name, tasks in sorted(registered.items())
    ]


def this_worker(consumer: Any, *, relays: bool) -> WorkerInfo:
    """The worker of this process, without a question to anybody."""
    channel = consumer.task_consumer
    queues = frozenset(queue.name for queue in channel.queues) if channel is not None else frozenset()
    limits = {str(name): getattr(task, "rate_limit", None) for name, task in list(consumer.app.tasks.items())}
    return WorkerInfo(
        name=str(consumer.hostname),
        queues=queues,
        tasks={name: None if limit is None else str(limit) for name, limit in limits.items()},
        active=[str(request.name) for request in state.active_requests.copy()],
        processes=getattr(consumer.pool, "limit", None),
        relays=relays,
    )


def why_unserved(handler: str, queue: str, workers: Sequence[WorkerInfo], *, alone: bool = False) -> str | None:
    """Why no message for a handler is taken from a queue; None when some worker does that.

    Args:
        alone: whether these are not all workers, but the one that is asked.
    """
    consuming = [worker for worker in workers if worker.consumes(queue)]
    if not consuming:
        return (
            f"{_no_worker_does(alone, 'consume')} queue {queue}{_alternatives('consumed', _consumed_queues(workers))}"
        )
    which = f" of queue {queue}" if any(handler in worker.tasks for worker in workers) else ""
    return why_unknown(handler, consuming, which, alone=alone)


def why_unknown(handler: str, workers: Sequence[WorkerInfo], which: str = "", *, alone: bool = False) -> str | None:
    """That none of these workers knows a handler, with the nearest that they know; None when some worker does."""
    if any(handler in worker.tasks for worker in workers):
        return None
    tasks = {task for worker in workers for task in worker.tasks if not task.startswith("celery.")}
    near = get_close_matches(handler, sorted(tasks), n=1, cutoff=MIN_NAME_SIMILARITY)
    return f"{_no_worker_does(alone, 'know', which)} handler {handler}{_alternatives('nearest', near)}"


def without_foreign_relays(boots: Collection[str], workers: Iterable[WorkerInfo]) -> list[WorkerInfo]:
    """The same workers; of those that are in the census of another outbox none relays for the one with these boots."""
    return [worker if worker.boot in {None, *boots} else replace(worker, relays=False) for worker in workers]


def silent_workers_note(names: Sequence[str]) -> str:
    """What is to be added to a reason as long as workers that live have not answered."""
    return f"; {', '.join(names)} lives but does not answer" if names else ""


def why_stuck(
    group: DeliveryGroup, workers: Sequence[WorkerInfo], *, alone: bool = False, silent: Sequence[str] = ()
) -> str:
    """Why the deliveries of a group are stuck, as far as these workers know.

    Args:
        silent: workers that live and do not answer.
    """
    if group.state == RUNNING:
        return f"it runs still, in {group.worker}"
    if not workers:
        return f"no worker answers{silent_workers_note(silent)}"
    if reason := why_unserved(group.handler, group.queue, workers, alone=alone):
        return reason + silent_workers_note(silent)
    serving = [worker for worker in workers if worker.consumes(group.queue) and group.handler in worker.tasks]
    if group.state == WAITING:
        return _why_unrelayed(workers, alone) + silent_workers_note(silent)
    if all(worker.is_busy for worker in serving):
        return _why_busy(serving)
    limit = next((limit for worker in serving if (limit := worker.tasks[group.handler])), None)
    if limit is not None:
        return f"rate limit {limit} of its handler"
    return f"not known; its queue is consumed by {', '.join(worker.name for worker in serving)}"


def _why_unrelayed(workers: Sequence[WorkerInfo], alone: bool) -> str:
    if all(worker.relays is False for worker in workers):
        nobody = _no_worker_does(alone, "relay")
        return f"{nobody} (--without-relay, or for another outbox); start one that does, or `nitro relay`"
    return "no relay has published it; is the broker reached by the one that is to?"


def _no_worker_does(alone: bool, what: str, which: str = "") -> str:
    return f"this worker does not {what}" if alone else f"no worker{which} {what}s"


def _why_busy(workers: Iterable[WorkerInfo]) -> str:
    running = Counter(task for worker in workers for task in worker.active)
    number = sum(worker.processes or 0 for worker in workers)
    tasks = ", ".join(f"{task} ({count})" for task, count in running.most_common(3))
    return f"all processes busy with {tasks}" if number != 1 else f"its one process busy with {tasks}"


def _consumed_queues(workers: Iterable[WorkerInfo]) -> list[str]:
    return sorted({queue for worker in workers for queue in worker.queues or ()})


def _alternatives(what: str, names: Sequence[str]) -> str:
    return f" ({what}: {', '.join(names)})" if names else ""


def _parse_task(told: Any) -> tuple[str, str | None]:
    """Name and rate limit of a task, as `inspect registered` tells them: `shop.mail [rate_limit=1/s]`."""
    name, _, facts = str(told).partition(" [")
    given = dict(fact.split("=", 1) for fact in facts.rstrip("]").split(" ") if "=" in fact)
    return name, given.get("rate_limit")


def _is_list(answer: object) -> bool:
    """Whether it is an answer, and no error."""
    return isinstance(answer, list)
