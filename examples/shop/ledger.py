"""The shop's ledger: the rows of side effects. A repeated delivery does not change them."""

from __future__ import annotations

from sqlalchemy import update
from sqlmodel import Field, col

from examples.shop.domain import OrderItem, Product
from nitro import Entity, transaction


class Withdrawal(Entity, table=True):
    """The record that the pieces of an order item were taken from stock. Its id is the item's, so there is only one."""

    __tablename__ = "shop_withdrawal"

    order_id: str = Field(index=True)
    product_id: str
    quantity: int
    worker: int

    @classmethod
    def record(cls, item: OrderItem, *, worker: int) -> None:
        """Takes an item from stock once, in one UPDATE, so that concurrent withdrawals add up."""
        with transaction() as session:
            if cls.exists(item.id):
                return
            fields = item.model_dump(include={"id", "order_id", "product_id", "quantity"})
            cls.create(**fields, worker=worker)
            statement = update(Product).where(col(Product.id) == item.product_id)
            session.exec(statement.values(stock=col(Product.stock) - item.quantity))


class AnalyticsRow(Entity, table=True):
    """A sale for the analysts. Its id is the idempotency key, so a repeated delivery overwrites its own row."""

    __tablename__ = "shop_analytics"

    order_id: str = Field(index=True)
    total: int
    worker: int
