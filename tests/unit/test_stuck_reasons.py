"""The reason why a delivery is stuck, by the reports of the workers: contract section 13."""

from __future__ import annotations

from typing import Any

import pytest

from nitro.infrastructure.outbox.health import DeliveryGroup
from nitro.infrastructure.worker.knowledge import WorkerInfo, why_stuck, why_unserved, without_foreign_relays

MAIL = "shop.mail"


def worker(name: str = "one@shop", **facts: Any) -> WorkerInfo:
    """Returns a worker that consumes `mails` and knows `shop.mail`, with these changes."""
    usual: dict[str, Any] = {"queues": frozenset({"mails"}), "tasks": {MAIL: None}, "processes": 2, "relays": True}
    return WorkerInfo(name=name, **usual | facts)


def group(state: Any = "queued", runner: str | None = None) -> DeliveryGroup:
    """Returns a group of deliveries to `shop.mail` in `mails`."""
    return DeliveryGroup(handler=MAIL, queue="mails", state=state, count=3, stuck=3, age=600.0, worker=runner)


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([], "no worker answers"),
        ([worker(queues=frozenset({"a", "b"}))], "no worker consumes queue mails (consumed: a, b)"),
        ([worker(queues=frozenset())], "no worker consumes queue mails"),
        ([worker(tasks={"shop.mails": None})], "no worker knows handler shop.mail (nearest: shop.mails)"),
        ([worker(tasks={"celery.mail": None, "other": None})], "no worker knows handler shop.mail"),
        (
            [worker(tasks={}), worker("two@shop", queues=frozenset({"b"}))],
            "no worker of queue mails knows handler shop.mail",
        ),
        ([worker(active=["a.b", "a.b"])], "all processes busy with a.b (2)"),
        ([worker(active=["a.b"], processes=1)], "its one process busy with a.b (1)"),
        ([worker(tasks={MAIL: "10/m"})], "rate limit 10/m of its handler"),
        ([worker(), worker("two@shop", active=["a", "b"])], "not known; its queue is consumed by one@shop, two@shop"),
    ],
)
def test_what_is_queued_waits_for_a_worker(workers: list[WorkerInfo], expected: str) -> None:
    """A queued delivery needs a worker that consumes its queue, knows its handler and has a free process."""
    assert why_stuck(group(), workers) == expected


def test_a_worker_that_does_not_say_what_it_consumes_may_consume_all() -> None:
    """A worker that does not report its queues gives no reason."""
    assert why_unserved(MAIL, "mails", [worker(queues=None)]) is None


def test_what_waits_needs_a_relay() -> None:
    """A waiting delivery needs a worker without `--without-relay`."""
    assert why_stuck(group("waiting"), [worker(relays=False)]).startswith("no worker relays (--without-relay, ")
    assert why_stuck(group("waiting"), [worker(relays=False), worker(relays=None)]).startswith(
        "no relay has published it"
    )


def test_what_runs_still_names_who_runs_it() -> None:
    """The reason names the running process, even if no worker answers."""
    assert why_stuck(group("running", "one@shop, process 7"), []) == "it runs still, in one@shop, process 7"


def test_one_worker_speaks_for_itself_alone() -> None:
    """The reason speaks of this worker only, because other workers may serve the delivery."""
    other = worker(queues=frozenset({"b"}))
    assert why_stuck(group(), [other], alone=True) == "this worker does not consume queue mails (consumed: b)"
    assert why_stuck(group(), [worker(tasks={})], alone=True) == "this worker does not know handler shop.mail"


def test_a_worker_of_another_outbox_relays_nothing_of_this_one() -> None:
    """A worker without a heartbeat in this outbox does not count as a relay, although it answers on the broker."""
    ours, strange = worker(relays=False, worker_id="a"), worker("car@shop", relays=True, worker_id="b")
    assert [each.relays for each in without_foreign_relays({"a"}, [ours, strange])] == [False, False]
    assert [each.relays for each in without_foreign_relays({"a", "b"}, [ours, strange])] == [False, True]
    assert without_foreign_relays({"a"}, [worker(relays=None)]) == [worker(relays=None)]


@pytest.mark.parametrize("workers", [[], [worker(queues=frozenset({"b"}))], [worker(tasks={})]])
def test_what_a_silent_worker_may_do_is_not_denied(workers: list[WorkerInfo]) -> None:
    """A busy worker under `-P solo` does not answer, so the reason names it as alive."""
    assert "solo@shop lives but does not answer" in why_stuck(group(), workers, silent=["solo@shop"])
