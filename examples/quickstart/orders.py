"""An order that is placed: one handler runs here, one in a worker. Start both as the README says."""

import os
from pathlib import Path

from nitro import Entity, emit, event, on

order_placed = event("order-placed")


class Order(Entity, table=True):
    """Business logic, and nothing but that."""

    customer_email: str
    total: float = 0.0
    status: str = "draft"

    def place(self) -> None:
        """Save the order, and say that it was placed."""
        self.status = "placed"
        self.save()
        emit(order_placed, self)


@on(order_placed)
def thank(sender: Order, **_: object) -> None:
    """Runs inline, before `place()` returns."""
    print(f"process {os.getpid()}: thank you, {sender.customer_email}")


@on(order_placed, offload=True)
def write_invoice(sender: Order, **_: object) -> None:
    """Runs in the worker, as a Celery task."""
    Path(f"invoice-{sender.id}.txt").write_text(f"process {os.getpid()}: {sender.total:.2f} due\n")


if __name__ == "__main__":
    Order(customer_email="ada@example.com", total=48.0).place()
