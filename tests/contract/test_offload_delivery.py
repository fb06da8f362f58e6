"""`current_delivery()`: facts that a running handler can read about itself, contract section 7."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from celery import Celery

from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload, current_delivery

Work = Callable[..., Any]
ONCE = Offload(max_retries=0)


def test_current_delivery_knows_the_emission(evt: Event, app: Celery, work: Work) -> None:
    """A handler finds the emission that queued it, its own name and the number of the attempt."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any) -> Any:
        delivery = current_delivery()
        assert delivery is not None
        return [delivery.emission, delivery.event, delivery.handler, delivery.attempt]

    emission = emit(evt)
    assert work(app).only(emission) == [emission.id, evt.name, "shop.handler", 1]


def test_idempotency_key_is_stable_and_differs_between_handlers(evt: Event, app: Celery, work: Work) -> None:
    """The idempotency key is the same at each attempt, and another for each handler."""
    attempts: list[str] = []

    def flaky(sender: Any) -> str:
        delivery = current_delivery()
        assert delivery is not None
        attempts.append(delivery.idempotency_key)
        if delivery.attempt == 1:
            raise ValueError("again")
        return delivery.idempotency_key

    def other(sender: Any) -> str:
        delivery = current_delivery()
        assert delivery is not None
        return delivery.idempotency_key

    on(evt, offload=Offload(retry_backoff=False, default_retry_delay=0), name="shop.flaky")(flaky)
    on(evt, offload=True, name="shop.other")(other)
    emission = emit(evt)
    worker = work(app)
    keys = [worker.of(task_id) for task_id in emission.offloaded.values()]
    assert attempts == [keys[0], keys[0]]
    assert keys[0] != keys[1]
    assert [UUID(key).version for key in keys] == [5, 5]


@pytest.mark.parametrize("place", ["option", "setting", "message"])
def test_deadline_is_that_of_the_time_limit(
    evt: Event, make_app: Callable[..., Celery], app: Celery, work: Work, place: str
) -> None:
    """The deadline follows from the time limit of the option, the setting or the message."""
    app.conf.task_soft_time_limit = 60 if place == "setting" else None

    def handler(sender: Any) -> str:
        delivery = current_delivery()
        assert delivery is not None
        assert delivery.deadline is not None
        return delivery.deadline.isoformat()

    on(evt, offload=Offload(soft_time_limit=60) if place == "option" else True, name="shop.handler")(handler)
    worker = work(app)
    before = datetime.now(UTC)
    if place == "message":
        task_id = handler.task.apply_async(("ada",), soft_time_limit=60).id  # type: ignore[attr-defined]
    else:
        (task_id,) = emit(evt).offloaded.values()
    deadline = datetime.fromisoformat(worker.of(task_id))
    assert timedelta(seconds=60) <= deadline - before < timedelta(seconds=80)


def test_there_is_no_deadline_without_a_limit(evt: Event, app: Celery, work: Work) -> None:
    """Without a time limit the deadline is None."""
    on(evt, offload=True, name="shop.handler")(lambda sender: current_delivery().deadline is None)  # type: ignore[union-attr]
    assert work(app).only(emit(evt)) is True


def test_current_delivery_is_none_outside_of_a_worker(evt: Event) -> None:
    """An inline handler has no delivery."""
    evt.connect(lambda sender: current_delivery() is None)
    assert emit(evt) == [True]
    assert current_delivery() is None


def test_current_delivery_is_known_to_async_handlers(evt: Event, app: Celery, work: Work) -> None:
    """Async handlers on one loop each read their own delivery."""

    @on(evt, offload=True, name="shop.handler")
    async def handler(sender: Any) -> str:
        delivery = current_delivery()
        assert delivery is not None
        return delivery.emission

    worker = work(app, pool="threads", concurrency=2)
    emissions = [emit(evt) for _ in range(4)]
    assert [worker.only(emission) for emission in emissions] == [emission.id for emission in emissions]
