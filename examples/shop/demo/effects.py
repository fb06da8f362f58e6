"""The side effects, read from the servers and the database, and their faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from examples.shop.demo.orders import Sales
from examples.shop.demo.servers import MailServer, WebhookServer
from examples.shop.domain import Order, Product
from examples.shop.ledger import AnalyticsRow, Withdrawal
from nitro.infrastructure.events import Emission

ORDER_HANDLERS = ("send_confirmation", "notify_webhook", "track_analytics")
"""Handlers with one effect for each order."""

Key = tuple[str, str, str]
"""Handler, id of the order, and id of the item where each item has an effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A side effect of a handler.

    Attributes:
        worker: id of the process that had the effect, as the effect records it.
        details: description for the timeline.
    """

    handler: str
    order: str
    item: str = ""
    worker: int
    details: str

    @property
    def key(self) -> Key:
        """The key that exactly one effect must have."""
        return self.handler, self.order, self.item


def expected_effects(order: Order) -> set[Key]:
    """Returns the keys of the effects of a valid order."""
    withdrawals = {("reduce_stock", order.id, item.id) for item in order.items}
    return withdrawals | {(handler, order.id, "") for handler in ORDER_HANDLERS}


def observe_effects(orders: Sequence[Order], mails: MailServer, webhooks: WebhookServer) -> list[Effect]:
    """Returns all effects of these orders: in the mail server, the web server and the database."""
    ids = [order.id for order in orders]
    effects = [
        *map(_mailed, list(mails.mails)),
        *map(_called, list(webhooks.calls)),
        *map(_withdrawn, Withdrawal.filter(order_id=ids)),
        *map(_recorded, AnalyticsRow.filter(order_id=ids)),
    ]
    return [effect for effect in effects if effect.order in ids]


def find_faults(expected: Collection[Key], observed: Sequence[Effect], emitter: int) -> list[str]:
    """Returns the faults: effects that are missing, repeated, unexpected, or that the emitting process had itself."""
    counts = Counter(effect.key for effect in observed)
    return [
        *(f"{_describe(key)} is missing" for key in expected if key not in counts),
        *(f"{_describe(key)} happened {count} times" for key, count in counts.items() if count > 1),
        *(f"{_describe(key)} should not have happened" for key in counts if key not in expected),
        *(f"{_describe(effect.key)} happened in the emitter" for effect in observed if effect.worker == emitter),
    ]


def emission_faults(order: Order, emission: Emission, valid: bool) -> list[str]:
    """Returns a fault if a valid order queued other handlers than its own, or an invalid order was not cancelled."""
    cancelled_by = emission.cancelled_by and function_name(emission.cancelled_by)
    queued = sorted(map(function_name, emission.offloaded))
    if (cancelled_by, queued) == ((None, sorted([*ORDER_HANDLERS, "reduce_stock"])) if valid else ("validate", [])):
        return []
    return [f"order {order.id} of {order.customer_email} was cancelled by {cancelled_by} and queued {queued}"]


def stock_faults(sales: Sales) -> list[str]:
    """Returns a fault for each product with a wrong number of pieces in stock."""
    rows = {product.id: product for product in Product.filter(id=[product.id for product in sales.products])}
    return [
        f"{rows[product.id].stock} pieces of {product.name} are in stock instead of {sales.expected_stock(product)}"
        for product in sales.products
        if rows[product.id].stock != sales.expected_stock(product)
    ]


def function_name(handler: str) -> str:
    """Returns the function's part of a handler's name."""
    return handler.rpartition(".")[2]


def _mailed(mail: Any) -> Effect:
    details = f'mail "{mail["Subject"]}" received'
    return Effect(handler="send_confirmation", order=mail["X-Order"], worker=int(mail["X-Worker"]), details=details)


def _called(call: dict[str, Any]) -> Effect:
    details = f"webhook received with key {call['key']}"
    return Effect(handler="notify_webhook", order=call["order"], worker=call["worker"], details=details)


def _withdrawn(row: Withdrawal) -> Effect:
    details = f"{row.quantity} taken from stock"
    return Effect(handler="reduce_stock", order=row.order_id, item=row.id, worker=row.worker, details=details)


def _recorded(row: AnalyticsRow) -> Effect:
    details = f"row over {row.total / 100:.2f} written"
    return Effect(handler="track_analytics", order=row.order_id, worker=row.worker, details=details)


def _describe(key: Key) -> str:
    handler, order, item = key
    return f"{handler} for order {order}" + (f", item {item}" if item else "")
