"""Emits from a new process: `python -m project.emitter EVENT KEY OPTIONS`; prints the facts as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from nitro import emit, transaction
from nitro.infrastructure.events import Emission
from nitro.infrastructure.offload.publishing import publisher
from project import handlers, mortal  # noqa: F401 - declares them
from project.values import Item, Order, everything


def _everything(key: str) -> Emission:
    values = everything()
    return emit("everything", values["entity"], *values.values(), key=key, **values)


def _lazy(key: str) -> Emission:
    order = Order.create(items=[Item(product="tea"), Item(product="milk")])
    unloaded = Order.get(order.id)
    return emit("lazy", unloaded, key=key)


def _changed(key: str) -> Emission:
    with transaction():
        order = Order.create(total=1)
        emission = emit("changed", order, key=key)
        order.total = 2
        order.save()
    return emission


def _vanished(key: str) -> Emission:
    with transaction():
        order = Order.create()
        emission = emit("vanished", order, key=key)
        order.delete()
    return emission


def _rolled_back(key: str) -> Emission:
    try:
        with transaction():
            emission = emit("parked", Order.create(id=key), key=key)
            raise InterruptedError
    except InterruptedError:
        return emission


SPECIAL = {
    "everything": _everything,
    "lazy": _lazy,
    "changed": _changed,
    "vanished": _vanished,
    "rolled-back": _rolled_back,
}


def main(event: str, key: str, options: dict[str, Any]) -> None:
    """Emits `times` times, then the event of the option `then`, and prints the facts of the last of the `times`."""
    for _ in range(options.get("times", 1)):
        make = SPECIAL.get(event)
        emission = make(key) if make else emit(event, options.get("sender", "ada"), key=key)
    if "then" in options:
        emit(options["then"], "ada", key=key)
    offloaded = {name.rpartition(".")[2]: task_id for name, task_id in emission.offloaded.items()}
    facts = {"pid": os.getpid(), "id": emission.id, "offloaded": offloaded, "cancelled_by": emission.cancelled_by}
    print(json.dumps(facts))


if __name__ == "__main__":
    publisher.FIRST_ANSWER_SECONDS = 20.0  # a busy machine takes longer to connect
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
