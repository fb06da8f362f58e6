"""What is emitted: an order with six columns and three loaded items, and two keyword arguments."""

from collections.abc import Callable
from typing import Any, Optional

from sqlmodel import Field, Relationship

from nitro import Entity


class Order(Entity, table=True):
    """Six columns."""

    customer: str
    email: str
    city: str
    status: str = "draft"
    total: float = 0.0
    items: list["Item"] = Relationship(back_populates="order")


class Item(Entity, table=True):
    """One of three."""

    sku: str
    quantity: int
    price: float
    order_id: str | None = Field(default=None, foreign_key="order.id")
    order: Optional["Order"] = Relationship(back_populates="items")


def order(count: int = 3) -> Order:
    """One with so many items, that is in memory only."""
    items = [Item(sku=f"sku-{number}", quantity=number, price=9.5 * number) for number in range(count)]
    return Order(customer="ada", email="ada@example.com", city="London", total=57.0, items=items)


KWARGS: dict[str, Any] = {"source": "web", "attempt": 1}


def dump(order: Order) -> dict[str, Any]:
    """What a hand-written task gets."""
    return {**order.model_dump(mode="json"), "items": [item.model_dump(mode="json") for item in order.items]}


def handlers(count: int) -> list[Callable[..., None]]:
    """So many handlers that do nothing, each a function of its own."""

    def made(number: int) -> Callable[..., None]:
        def handler(sender: object, **kwargs: object) -> None: ...

        handler.__name__ = handler.__qualname__ = f"handler{number}"
        return handler

    return [made(number) for number in range(count)]
