"""The shop for real: `python -m examples.shop.demo` starts a worker, places orders and checks every side effect.

Needs no server; with `NITRO_DB_URL` and `NITRO_BROKER_URL` it runs on PostgreSQL, Redis or RabbitMQ.
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

from examples.shop.domain import Order
from examples.shop.effects import Effect, Key, emission_faults, expected, faults, observe, shelf_faults, short
from examples.shop.handlers import logger
from examples.shop.receivers import MailServer, WebhookServer
from examples.shop.sales import Sales
from examples.shop.timeline import Timeline
from examples.shop.worker import WorkerProcess, wait_until
from nitro import Entity, drain

EFFECTS_WITHIN = 20.0
"""Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """One run, between a worker that was started and the servers where effects land."""

    timeline: Timeline
    mails: MailServer
    webhooks: WebhookServer
    worker: WorkerProcess

    def run(self) -> list[str]:
        """Place the orders and watch; what is wrong, which should be nothing."""
        self.timeline.line("worker", f"process {self.worker.pid}", "celery -A tasks worker -c 2 starts")
        try:
            if not self.worker.answers():
                return ["the worker does not answer"]
        except OperationalError as error:
            return [f"the broker does not answer: {error}"]
        self.timeline.line("worker", f"process {self.worker.pid}", "answers celery inspect ping")
        sales = Sales.prepare()
        wrong = [fault for order in sales.orders for fault in self._place(order, order in sales.valid)]
        wanted = {key for order in sales.valid for key in expected(order)}
        self._watch(wanted, sales.orders)
        self.timeline.line("worker", f"process {self.worker.pid}", "may finish what it runs, and is stopped")
        self.worker.stop()
        observed = observe(sales.orders, self.mails, self.webhooks)
        return [*wrong, *faults(wanted, observed, os.getpid()), *shelf_faults(sales)]

    def _place(self, order: Order, valid: bool) -> list[str]:
        pieces = sum(item.quantity for item in order.items)
        self.timeline.heading(f"{order.customer_email} places an order: {pieces} pieces, {order.total / 100:.2f}")
        begun = perf_counter()
        emission = order.place()
        took = (perf_counter() - begun) * 1000
        for handler, reason in emission.skipped.items():
            self.timeline.line("skipped", short(handler), reason)
        if emission.cancelled_by:
            self.timeline.line("cancelled", short(emission.cancelled_by), "returned False, so nothing else runs")
        queued = ", ".join(map(short, emission.offloaded)) or "nothing"
        self.timeline.line("placed", "Order.place()", f"took {took:.0f} ms and queued {queued}")
        drain(timeout=5)
        return emission_faults(order, emission, valid)

    def _watch(self, wanted: set[Key], orders: list[Order]) -> None:
        """Wait until all wanted effects were seen, then print what was seen, and when first."""
        seen: dict[Effect, float] = {}

        def complete() -> bool:
            fresh = [effect for effect in observe(orders, self.mails, self.webhooks) if effect not in seen]
            seen.update(dict.fromkeys(fresh, self.timeline.now))
            bar.update(len(fresh))
            return wanted <= {effect.key for effect in seen} or not self.worker.alive

        self.timeline.heading("In the worker")
        with click.progressbar(length=len(wanted), label=f"  waiting for {len(wanted)} side effects") as bar:
            wait_until(complete, EFFECTS_WITHIN)
        emails = {order.id: order.customer_email for order in orders}
        for effect, at in seen.items():
            what = f"{emails[effect.order]:<18} {effect.what}, in process {effect.worker}"
            self.timeline.line("effect", effect.handler, what, at)


def main() -> int:
    """Run the demo; 0 if every side effect was seen exactly once where it lands, else 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    timeline = Timeline()
    logger.setLevel(logging.INFO)
    logger.addHandler(timeline)
    with TemporaryDirectory(prefix="nitro-demo-") as folder, MailServer() as mails, WebhookServer() as webhooks:
        os.environ.update(_environment(Path(folder), mails, webhooks))
        Entity.init_db()
        with WorkerProcess(Path(folder) / "worker.log") as worker:
            wrong = Demo(timeline=timeline, mails=mails, webhooks=webhooks, worker=worker).run()
        return _verdict(timeline, wrong, worker)


def _environment(home: Path, mails: MailServer, webhooks: WebhookServer) -> dict[str, str]:
    """What this process and the worker share; Celery and the database read it at first use, which is later."""
    return {
        "NITRO_HOME": str(home),
        "NITRO_DB_URL": os.environ.get("NITRO_DB_URL") or f"sqlite:///{home / 'nitro.db'}",
        "NITRO_HANDLERS": "examples.shop.handlers",
        "SHOP_SMTP": mails.address,
        "SHOP_WEBHOOK": webhooks.address,
        "no_proxy": "127.0.0.1",
    }


def _verdict(timeline: Timeline, wrong: list[str], worker: WorkerProcess) -> int:
    timeline.heading("Result")
    for fault in wrong:
        timeline.line("failed", "demo", fault)
    if wrong:
        click.echo(f"\nThe end of the worker's log:\n{worker.tail()}")
        return 1
    timeline.line("passed", "demo", "every side effect was seen exactly once, and none of a cancelled order")
    return 0


if __name__ == "__main__":
    sys.exit(main())
