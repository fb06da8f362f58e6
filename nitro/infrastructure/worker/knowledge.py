"""Facts that workers report about themselves, and the reasons why deliveries are stuck."""

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
"""The inspect command whose answer has `relays` and `boot`."""
MIN_NAME_SIMILARITY = 0.5
"""The similarity from which on a known name is suggested for an unknown one (`difflib` ratio)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker, as it describes itself; None stands for an unknown value.

    Attributes:
        queues: the queues that it consumes.
        tasks: the tasks that it knows, each with its rate limit.
        active: names of the running tasks.
        processes: number of tasks that can run at once.
        relays: whether it runs a relay.
        worker_id: its id in the heartbeats of its outbox, which may be another outbox.
    """

    name: str
    queues: frozenset[str] | None
    tasks: Mapping[str, str | None]
    active: Sequence[str] = ()
    processes: int | None = None
    relays: bool | None = None
    worker_id: str | None = None

    def consumes(self, queue: str) -> bool:
        """Whether the worker consumes a queue, or may consume it."""
        return self.queues is None or queue in self.queues

    @property
    def is_busy(self) -> bool:
        """Whether all processes of the worker are busy."""
        return self.processes is not None and len(self.active) >= self.processes


def inspect_workers(app: Celery, timeout: float) -> list[WorkerInfo]:
    """Returns the workers that answer over the broker.

    The first command waits `timeout` seconds for unknown workers; the others wait only for the workers that answered.
    """
    registered: Mapping[str, Any] = app.control.inspect(timeout=timeout).registered() or {}
    if not registered:
        return []
    inspect = app.control.inspect(timeout=timeout, destination=sorted(registered))
    queues, active, stats = (command() or {} for command in (inspect.active_queues, inspect.active, inspect.stats))
    replies = app.control.broadcast(OUTBOX_COMMAND, reply=True, timeout=timeout, destination=sorted(registered)) or []
    outbox = {name: answer for reply in replies for name, answer in reply.items() if isinstance(answer, dict)}
    return [
        WorkerInfo(
            name=name,
            queues=frozenset(queue["name"] for queue in queues[name]) if _is_list(queues.get(name)) else None,
            tasks=dict(map(_parse_task, tasks)) if _is_list(tasks) else {},
            active=[str(each["name"]) for each in active[name]] if _is_list(active.get(name)) else (),
            processes=(stats.get(name) or {}).get("pool", {}).get("max-concurrency"),
            relays=(outbox.get(name) or {}).get("relays"),
            worker_id=(outbox.get(name) or {}).get("boot"),
        )
        for name, tasks in sorted(registered.items())
    ]


def this_worker(consumer: Any, *, relays: bool) -> WorkerInfo:
    """Describes the worker of this process from its own state."""
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
    """Returns the reason why no worker takes messages of a handler from a queue; None when a worker does.

    Args:
        alone: whether `workers` is only the worker of this process, not all workers.
    """
    consuming = [worker for worker in workers if worker.consumes(queue)]
    if not consuming:
        return (
            f"{_no_worker_does(alone, 'consume')} queue {queue}{_alternatives('consumed', _consumed_queues(workers))}"
        )
    of_queue = f" of queue {queue}" if any(handler in worker.tasks for worker in workers) else ""
    return why_unknown(handler, consuming, of_queue, alone=alone)


def why_unknown(handler: str, workers: Sequence[WorkerInfo], of_queue: str = "", *, alone: bool = False) -> str | None:
    """Returns the sentence that no worker knows a handler, with the nearest known name; None when a worker does."""
    if any(handler in worker.tasks for worker in workers):
        return None
    tasks = {task for worker in workers for task in worker.tasks if not task.startswith("celery.")}
    nearest = get_close_matches(handler, sorted(tasks), n=1, cutoff=MIN_NAME_SIMILARITY)
    return f"{_no_worker_does(alone, 'know', of_queue)} handler {handler}{_alternatives('nearest', nearest)}"


def without_foreign_relays(worker_ids: Collection[str], workers: Iterable[WorkerInfo]) -> list[WorkerInfo]:
    """Returns the workers with `relays=False` for workers of another outbox.

    Args:
        worker_ids: ids in the heartbeats of this outbox.
    """
    return [worker if worker.worker_id in {None, *worker_ids} else replace(worker, relays=False) for worker in workers]


def silent_workers_note(names: Sequence[str]) -> str:
    """Returns a suffix for a reason that names workers with a heartbeat that have not answered."""
    return f"; {', '.join(names)} lives but does not answer" if names else ""


def why_stuck(
    group: DeliveryGroup, workers: Sequence[WorkerInfo], *, alone: bool = False, silent: Sequence[str] = ()
) -> str:
    """Returns the reason why the deliveries of a group are stuck, from the facts of these workers.

    Args:
        silent: names of workers with a heartbeat that do not answer.
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
        no_relay = _no_worker_does(alone, "relay")
        return f"{no_relay} (--without-relay, or for another outbox); start one that does, or `nitro relay`"
    return "no relay has published it; is the broker reached by the one that is to?"


def _no_worker_does(alone: bool, verb: str, of_queue: str = "") -> str:
    return f"this worker does not {verb}" if alone else f"no worker{of_queue} {verb}s"


def _why_busy(workers: Iterable[WorkerInfo]) -> str:
    running = Counter(task for worker in workers for task in worker.active)
    number = sum(worker.processes or 0 for worker in workers)
    tasks = ", ".join(f"{task} ({count})" for task, count in running.most_common(3))
    return f"all processes busy with {tasks}" if number != 1 else f"its one process busy with {tasks}"


def _consumed_queues(workers: Iterable[WorkerInfo]) -> list[str]:
    return sorted({queue for worker in workers for queue in worker.queues or ()})


def _alternatives(kind: str, names: Sequence[str]) -> str:
    return f" ({kind}: {', '.join(names)})" if names else ""


def _parse_task(text: Any) -> tuple[str, str | None]:
    """Returns name and rate limit of a task from `inspect registered`: `shop.mail [rate_limit=1/s]`."""
    name, _, options_text = str(text).partition(" [")
    options = dict(option.split("=", 1) for option in options_text.rstrip("]").split(" ") if "=" in option)
    return name, options.get("rate_limit")


def _is_list(answer: object) -> bool:
    """Whether the answer of a worker is a list, and not an error."""
    return isinstance(answer, list)
