"""The handlers of a placed order.

The inline handlers run first, by priority, in the process that places the order. Unless one of them
returns False, each handler with `offload` then runs in a worker, as a Celery task. The worker finds
it through `NITRO_HANDLERS=examples.shop.handlers`, the default of `tasks`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from email.message import EmailMessage
from smtplib import SMTP
from urllib.request import Request, urlopen

from examples.shop.domain import Order, order_placed
from examples.shop.ledger import AnalyticsRow, Withdrawal
from nitro import current_delivery, on

logger = logging.getLogger("shop")


@on(order_placed, priority=10)
def validate(sender: Order, **_: object) -> bool:
    """Rejects an order that is empty or exceeds the credit: False cancels the emission."""
    valid = bool(sender.items) and sender.total <= sender.credit
    verdict = "accepts" if valid else "rejects"
    logger.info("%s %.2f, of a credit of %.2f", verdict, sender.total / 100, sender.credit / 100)
    if not valid:
        sender.reject()
    return valid


@on(order_placed)
def audit(sender: Order, **_: object) -> None:
    """Logs the customer and the order."""
    logger.info("%s placed order %s", sender.customer_email, sender.id)


@on(order_placed, condition=lambda sender, **_: sender.total > 50_000)
def high_value_alert(sender: Order, **_: object) -> None:
    """Asks the sales staff to call the customer, for orders over 500.00."""
    logger.info("somebody should call %s", sender.customer_email)


@on(order_placed)
async def refresh_dashboard(sender: Order, **_: object) -> None:
    """Counts the placed orders; `emit` does not wait for it."""
    placed = await asyncio.to_thread(Order.count, Order.status == "placed")
    logger.info("shows %d placed orders", placed)


@on(order_placed, offload=True)
def send_confirmation(sender: Order, **_: object) -> None:
    """Sends a mail to the customer."""
    mail = EmailMessage()
    mail["From"], mail["To"] = "shop@example.com", sender.customer_email
    mail["Subject"] = "Your order is on its way"
    mail["X-Order"], mail["X-Worker"] = sender.id, str(os.getpid())
    mail.set_content(f"Thank you! We will charge {sender.total / 100:.2f}.")
    with SMTP(os.environ["SHOP_SMTP"]) as server:
        server.send_message(mail)


@on(order_placed, offload=True)
async def reduce_stock(sender: Order, **_: object) -> None:
    """Takes the items from stock."""
    for item in sender.items:
        await asyncio.to_thread(Withdrawal.record, item, worker=os.getpid())


@on(order_placed, offload=True)
def notify_webhook(sender: Order, **_: object) -> None:
    """Calls the warehouse; by the idempotency key it recognises a repeated call."""
    request = Request(
        os.environ["SHOP_WEBHOOK"],
        data=json.dumps({"order": sender.id, "total": sender.total, "worker": os.getpid()}).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": key_for(sender)},
    )
    urlopen(request, timeout=10).close()


@on(order_placed, offload={"delivery": "exactly-once"})
def track_analytics(sender: Order, **_: object) -> Iterator[str]:
    """Records the sale in the transaction that closes the delivery. Flower shows the yielded values as progress."""
    yield "recording"
    AnalyticsRow(id=key_for(sender), order_id=sender.id, total=sender.total, worker=os.getpid()).save()
    yield "recorded"


def key_for(order: Order) -> str:
    """Returns the idempotency key of the running delivery; the order's id if the handler was called as a function."""
    delivery = current_delivery()
    return delivery.idempotency_key if delivery else order.id
