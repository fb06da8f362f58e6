"""The orders and products of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from examples.shop.domain import Order, Product


@dataclass(frozen=True, slots=True, kw_only=True)
class Sales:
    """The orders and products of one run.

    Attributes:
        orders: all orders, in the sequence in which the demo places them.
        valid: the orders that validation must accept.
        products: the products as they are before the first order.
    """

    orders: list[Order]
    valid: list[Order]
    products: list[Product]

    @classmethod
    def prepare(cls) -> Sales:
        """Saves new products, and returns them with new orders that are not placed yet."""
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

    def expected_stock(self, product: Product) -> int:
        """Returns the pieces of a product that must be in stock after all orders."""
        items = [item for order in self.valid for item in order.items]
        return product.stock - sum(item.quantity for item in items if item.product_id == product.id)
