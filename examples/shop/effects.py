"""What the side effects left, read where they landed, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from examples.shop.domain import Order, Product
from examples.shop.ledger import AnalyticsRow, Withdrawal
from examples.shop.receivers import MailServer, WebhookServer
from examples.shop.sales import Sales
from nitro.infrastructure.events import Emission

ONCE_AN_ORDER = ("send_confirmation", "notify_webhook", "track_analytics")

Key = tuple[str, str, str]
"""Handler, id of the order, and of the item where there is an effect for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One thing that a handler did.

    Attributes:
        worker: id of the process that did it, as the effect itself says.
        what: for people.
    """

    handler: str
    order: str
    item: str = ""
    worker: int
    what: str

    @property
    def key(self) -> Key:
        """What there must be exactly one of."""
        return self.handler, self.order, self.item


def expected(order: Order) -> set[Key]:
    """The effects that placing a valid order has."""
    withdrawals = {("reduce_stock", order.id, item.id) for item in order.items}
    return withdrawals | {(handler, order.id, "") for handler in ONCE_AN_ORDER}


def observe(orders: Sequence[Order], mails: MailServer, webhooks: WebhookServer) -> list[Effect]:
    """All effects for these orders: in the mail server, the web server and the database."""
    ids = [order.id for order in orders]
    found = [
        *map(_mailed, list(mails.mails)),
        *map(_called, list(webhooks.calls)),
        *map(_withdrawn, Withdrawal.filter(order_id=ids)),
        *map(_recorded, AnalyticsRow.filter(order_id=ids)),
    ]
    return [effect for effect in found if effect.order in ids]


def faults(wanted: Collection[Key], observed: Sequence[Effect], emitter: int) -> list[str]:
    """What is missing, repeated, unwanted, or was done by the emitting process."""
    counts = Counter(effect.key for effect in observed)
    return [
        *(f"{_shown(key)} is missing" for key in wanted if key not in counts),
        *(f"{_shown(key)} happened {count} times" for key, count in counts.items() if count > 1),
        *(f"{_shown(key)} should not have happened" for key in counts if key not in wanted),
        *(f"{_shown(effect.key)} happened in the emitter" for effect in observed if effect.worker == emitter),
    ]


def emission_faults(order: Order, emission: Emission, valid: bool) -> list[str]:
    """Whether a valid order queued its handlers, and another was cancelled by validation and queued nothing."""
    cancelled_by = emission.cancelled_by and short(emission.cancelled_by)
    queued = sorted(map(short, emission.offloaded))
    if (cancelled_by, queued) == ((None, sorted([*ONCE_AN_ORDER, "reduce_stock"])) if valid else ("validate", [])):
        return []
    return [f"order {order.id} of {order.customer_email} was cancelled by {cancelled_by} and queued {queued}"]


def shelf_faults(sales: Sales) -> list[str]:
    """The products of which another number is in stock than should be left."""
    rows = {product.id: product for product in Product.filter(id=[product.id for product in sales.products])}
    return [
        f"{rows[before.id].stock} pieces of {before.name} are in stock instead of {sales.left(before)}"
        for before in sales.products
        if rows[before.id].stock != sales.left(before)
    ]


def short(handler: str) -> str:
    """The function's name in the name of a handler."""
    return handler.rpartition(".")[2]


def _mailed(mail: Any) -> Effect:
    what = f'mail "{mail["Subject"]}" received'
    return Effect(handler="send_confirmation", order=mail["X-Order"], worker=int(mail["X-Worker"]), what=what)


def _called(call: dict[str, Any]) -> Effect:
    what = f"webhook received with key {call['key']}"
    return Effect(handler="notify_webhook", order=call["order"], worker=call["worker"], what=what)


def _withdrawn(row: Withdrawal) -> Effect:
    what = f"{row.quantity} taken from stock"
    return Effect(handler="reduce_stock", order=row.order_id, item=row.id, worker=row.worker, what=what)


def _recorded(row: AnalyticsRow) -> Effect:
    what = f"row over {row.total / 100:.2f} written"
    return Effect(handler="track_analytics", order=row.order_id, worker=row.worker, what=what)


def _shown(key: Key) -> str:
    handler, order, item = key
    return f"{handler} for order {order}" + (f", item {item}" if item else "")
