"""The app `myapp` of the pages that show no app of their own."""

from celery import Celery

from nitro import Entity, emit, event, on
from nitro.infrastructure.offload import bind

app = bind(Celery("myapp"))
order_placed = event("order-placed")
mail_sent = event("mail-sent")


class Order(Entity, table=True):
    total: float = 0.0


class NoAddress(Exception):
    """An error that no retry can help."""


@on(order_placed, name="shop.validate", priority=1)
def validate(order: Order) -> bool:
    return order.total >= 0


@on(order_placed, name="shop.ship", offload={"throws": (NoAddress,)})
def ship(order: Order) -> None:
    raise NoAddress(order.id)


@on(order_placed, name="shop.mail", offload={"retry_backoff": 2})
def mail(order: Order) -> None:
    from nitro import current_delivery

    delivery = current_delivery()
    if delivery is not None and delivery.attempt == 1:
        raise ConnectionError("try later")
    emit(mail_sent, order)


@on(mail_sent, name="shop.count", offload=True)
def count(order: Order) -> None: ...
