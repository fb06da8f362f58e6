"""The shop's domain: products and orders, without mails, webhooks or stock keeping.

Amounts are in cents.
"""

# No `from __future__ import annotations` here: SQLModel reads the class behind a Relationship from its annotation.

from sqlmodel import Field, Relationship

from nitro import Entity, emit, event
from nitro.infrastructure.events import Emission

order_placed = event("order-placed", "An order was saved as placed; its sender is the Order.")


class Product(Entity, table=True):
    """A product, its price and the pieces in stock."""

    __tablename__ = "shop_product"

    name: str
    price: int
    stock: int


class OrderItem(Entity, table=True):
    """A number of pieces of a product, at the price at the time of the order."""

    __tablename__ = "shop_order_item"

    order_id: str | None = Field(default=None, foreign_key="shop_order.id")
    product_id: str = Field(foreign_key="shop_product.id")
    quantity: int
    price: int


class Order(Entity, table=True):
    """An order of a customer, and the customer's credit."""

    __tablename__ = "shop_order"

    customer_email: str
    credit: int
    status: str = "draft"
    items: list[OrderItem] = Relationship()

    @property
    def total(self) -> int:
        """The price of all items."""
        return sum(item.quantity * item.price for item in self.items)

    def add(self, product: Product, quantity: int) -> None:
        """Adds pieces of a product to the order."""
        self.items.append(OrderItem(product_id=product.id, quantity=quantity, price=product.price))

    def place(self) -> Emission:
        """Saves the order as placed, emits `order_placed` and returns the emission."""
        self.status = "placed"
        self.save()
        return emit(order_placed, self)

    def reject(self) -> None:
        """Saves the order as rejected."""
        self.status = "rejected"
        self.save()
