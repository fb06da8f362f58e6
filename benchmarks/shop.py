"""The sender of all benchmarks: an order with six columns and three loaded items; and two keyword arguments."""

from collections.abc import Callable
from typing import Any, Optional

from sqlmodel import Field, Relationship

from nitro import Entity


class Order(Entity, table=True):
    """An order with six columns."""

    customer: str
    email: str
    city: str
    status: str = "draft"
    total: float = 0.0
    items: list["Item"] = Relationship(back_populates="order")


class Item(Entity, table=True):
    """An item of an order."""

    sku: str
    quantity: int
    price: float
    order_id: str | None = Field(default=None, foreign_key="order.id")
    order: Optional["Order"] = Relationship(back_populates="items")


def order(count: int = 3) -> Order:
    """Returns an unsaved order with this number of items."""
    items = [Item(sku=f"sku-{number}", quantity=number, price=9.5 * number) for number in range(count)]
    return Order(customer="ada", email="ada@example.com", city="London", total=57.0, items=items)


KWARGS: dict[str, Any] = {"source": "web", "attempt": 1}


def dump(order: Order) -> dict[str, Any]:
    """Returns the order as a hand-written task gets it."""
    return {**order.model_dump(mode="json"), "items": [item.model_dump(mode="json") for item in order.items]}


def handlers(count: int) -> list[Callable[..., None]]:
    """Returns a number of handlers that do nothing, each a function of its own."""

    def new_handler(number: int) -> Callable[..., None]:
        def handler(sender: object, **kwargs: object) -> None: ...

        handler.__name__ = handler.__qualname__ = f"handler{number}"
        return handler

    return [new_handler(number) for number in range(count)]
