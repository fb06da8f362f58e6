"""An order with two handlers: one runs in this process, one in a worker. The README has the two commands."""

import os
from pathlib import Path

from nitro import Entity, emit, event, on

order_placed = event("order-placed")


class Order(Entity, table=True):
    """An order. The class has business logic only."""

    customer_email: str
    total: float = 0.0
    status: str = "draft"

    def place(self) -> None:
        """Saves the order as placed, and emits `order_placed`."""
        self.status = "placed"
        self.save()
        emit(order_placed, self)


@on(order_placed)
def thank(sender: Order, **_: object) -> None:
    """Thanks the customer: runs inline, before `place()` returns."""
    print(f"process {os.getpid()}: thank you, {sender.customer_email}")


@on(order_placed, offload=True)
def write_invoice(sender: Order, **_: object) -> None:
    """Writes an invoice: runs in the worker, as a Celery task."""
    Path(f"invoice-{sender.id}.txt").write_text(f"process {os.getpid()}: {sender.total:.2f} due\n")


if __name__ == "__main__":
    Order(customer_email="ada@example.com", total=48.0).place()
