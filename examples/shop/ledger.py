"""The shop's ledger: rows that side effects leave, written so that a repeated delivery changes nothing."""

from __future__ import annotations

from sqlalchemy import update
from sqlmodel import Field, col

from examples.shop.domain import OrderItem, Product
from nitro import Entity, transaction


class Withdrawal(Entity, table=True):
    """The pieces of an order item were taken from stock; its id is the item's, so there is one."""

    __tablename__ = "shop_withdrawal"

    order_id: str = Field(index=True)
    product_id: str
    quantity: int
    worker: int

    @classmethod
    def of(cls, item: OrderItem, *, worker: int) -> None:
        """Take an item from stock once, in one UPDATE that overwrites nobody else's."""
        with transaction() as session:
            if cls.exists(item.id):
                return
            fields = item.model_dump(include={"id", "order_id", "product_id", "quantity"})
            cls.create(**fields, worker=worker)
            taken = update(Product).where(col(Product.id) == item.product_id)
            session.exec(taken.values(stock=col(Product.stock) - item.quantity))


class AnalyticsRow(Entity, table=True):
    """A sale, as the analysts count it; its id is the delivery's key, so a repeated one overwrites itself."""

    __tablename__ = "shop_analytics"

    order_id: str = Field(index=True)
    total: int
    worker: int
