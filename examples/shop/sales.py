"""The orders of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from examples.shop.domain import Order, Product


@dataclass(frozen=True, slots=True, kw_only=True)
class Sales:
    """What the demo sells.

    Attributes:
        orders: all, in the order in which they are placed.
        valid: those among them that are not to be cancelled.
        products: as they are before the sale.
    """

    orders: list[Order]
    valid: list[Order]
    products: list[Product]

    @classmethod
    def prepare(cls) -> Sales:
        """New products, in the database, and new orders, not yet placed."""
        teapot = Product(name="teapot", price=2_400, stock=20).save()
        cup = Product(name="cup", price=800, stock=100).save()
        ada = Order(customer_email="ada@example.com", credit=10_000)
        ada.add(teapot, 1)
        ada.add(cup, 4)
        empty = Order(customer_email="nobody@example.com", credit=10_000)
        expensive = Order(customer_email="spendthrift@example.com", credit=1_000)
        expensive.add(teapot, 3)
        grace = Order(customer_email="grace@example.com", credit=100_000)
        grace.add(cup, 70)
        return cls(orders=[ada, empty, expensive, grace], valid=[ada, grace], products=[teapot, cup])

    def left(self, product: Product) -> int:
        """How many pieces of a product should be in stock after the sale."""
        items = [item for order in self.valid for item in order.items]
        return product.stock - sum(item.quantity for item in items if item.product_id == product.id)
