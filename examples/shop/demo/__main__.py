"""The command `python -m examples.shop.demo`: starts a worker, places orders and checks every side effect.

It needs no server; with `NITRO_DB_URL` and `NITRO_BROKER_URL` it runs on PostgreSQL, Redis or RabbitMQ.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import click
from kombu.exceptions import OperationalError

from examples.shop.demo.effects import (
    Effect,
    Key,
    emission_faults,
    expected_effects,
    find_faults,
    function_name,
    observe_effects,
    stock_faults,
)
from examples.shop.demo.orders import Sales
from examples.shop.demo.output import Timeline
from examples.shop.demo.servers import MailServer, WebhookServer
from examples.shop.demo.worker_process import WorkerProcess, wait_until
from examples.shop.domain import Order
from examples.shop.handlers import logger
from nitro import Entity, drain

EFFECTS_SECONDS = 20.0
"""Seconds until all effects must be there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A run of the demo, with its worker and the servers that receive the effects."""

    timeline: Timeline
    mails: MailServer
    webhooks: WebhookServer
    worker: WorkerProcess

    def run(self) -> list[str]:
        """Places the orders, waits for the effects, and returns the faults; an empty list is success."""
        self.timeline.line("worker", f"process {self.worker.pid}", "celery -A tasks worker -c 2 starts")
        try:
            if not self.worker.answers():
                return ["the worker does not answer"]
        except OperationalError as error:
            return [f"the broker does not answer: {error}"]
        self.timeline.line("worker", f"process {self.worker.pid}", "answers celery inspect ping")
        sales = Sales.prepare()
        emission_errors = [fault for order in sales.orders for fault in self._place(order, order in sales.valid)]
        expected = {key for order in sales.valid for key in expected_effects(order)}
        self._watch(expected, sales.orders)
        self.timeline.line("worker", f"process {self.worker.pid}", "may finish what it runs, and is stopped")
        self.worker.stop()
        observed = observe_effects(sales.orders, self.mails, self.webhooks)
        return [*emission_errors, *find_faults(expected, observed, os.getpid()), *stock_faults(sales)]

    def _place(self, order: Order, valid: bool) -> list[str]:
        pieces = sum(item.quantity for item in order.items)
        self.timeline.heading(f"{order.customer_email} places an order: {pieces} pieces, {order.total / 100:.2f}")
        start = perf_counter()
        emission = order.place()
        milliseconds = (perf_counter() - start) * 1000
        for handler, reason in emission.skipped.items():
            self.timeline.line("skipped", function_name(handler), reason)
        if emission.cancelled_by:
            self.timeline.line(
                "cancelled", function_name(emission.cancelled_by), "returned False, so nothing else runs"
            )
        queued = ", ".join(map(function_name, emission.offloaded)) or "nothing"
        self.timeline.line("placed", "Order.place()", f"took {milliseconds:.0f} ms and queued {queued}")
        drain(timeout=5)
        return emission_faults(order, emission, valid)

    def _watch(self, expected: set[Key], orders: list[Order]) -> None:
        """Waits until all expected effects were observed, then prints the observed effects with their times."""
        times: dict[Effect, float] = {}

        def complete() -> bool:
            observed = observe_effects(orders, self.mails, self.webhooks)
            new_effects = [effect for effect in observed if effect not in times]
            times.update(dict.fromkeys(new_effects, self.timeline.now))
            bar.update(len(new_effects))
            return expected <= {effect.key for effect in times} or not self.worker.alive

        self.timeline.heading("In the worker")
        with click.progressbar(length=len(expected), label=f"  waiting for {len(expected)} side effects") as bar:
            wait_until(complete, EFFECTS_SECONDS)
        emails = {order.id: order.customer_email for order in orders}
        for effect, seconds in times.items():
            details = f"{emails[effect.order]:<18} {effect.details}, in process {effect.worker}"
            self.timeline.line("effect", effect.handler, details, seconds)


def main() -> int:
    """Runs the demo; returns 0 if every side effect was observed exactly once, else 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    timeline = Timeline()
    logger.setLevel(logging.INFO)
    logger.addHandler(timeline)
    with TemporaryDirectory(prefix="nitro-demo-") as folder, MailServer() as mails, WebhookServer() as webhooks:
        os.environ.update(_environment(Path(folder), mails, webhooks))
        Entity.init_db()
        with WorkerProcess(Path(folder) / "worker.log") as worker:
            faults = Demo(timeline=timeline, mails=mails, webhooks=webhooks, worker=worker).run()
        return _print_result(timeline, faults, worker)


def _environment(home: Path, mails: MailServer, webhooks: WebhookServer) -> dict[str, str]:
    """Returns the environment of this process and the worker. Celery and the database read it at their first use."""
    return {
        "NITRO_HOME": str(home),
        "NITRO_DB_URL": os.environ.get("NITRO_DB_URL") or f"sqlite:///{home / 'nitro.db'}",
        "NITRO_HANDLERS": "examples.shop.handlers",
        "SHOP_SMTP": mails.address,
        "SHOP_WEBHOOK": webhooks.address,
        "no_proxy": "127.0.0.1",
    }


def _print_result(timeline: Timeline, faults: list[str], worker: WorkerProcess) -> int:
    timeline.heading("Result")
    for fault in faults:
        timeline.line("failed", "demo", fault)
    if faults:
        click.echo(f"\nThe end of the worker's log:\n{worker.tail()}")
        return 1
    timeline.line("passed", "demo", "every side effect was seen exactly once, and none of a cancelled order")
    return 0


if __name__ == "__main__":
    sys.exit(main())
