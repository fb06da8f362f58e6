"""Mutations: CHAOS_MUTANT removes a safeguard of the library, which a scenario must notice."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sqlalchemy import bindparam, update

from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.outbox import claims, pending
from nitro.infrastructure.outbox.schema import deliveries
from nitro.infrastructure.worker import task


def _no_sweep() -> None:
    pending.requeue_lost = lambda sizes: 0


def _no_ledger() -> None:
    """Makes a claim compare the state with itself, which is always true."""
    claims.QUEUED = deliveries.c.state


def _no_fence() -> None:
    """Makes a run close its delivery even if another run has claimed it since."""
    later = (deliveries.c.attempts >= bindparam("of_attempt")) | (deliveries.c.worker == bindparam("of_worker"))
    claims._update_of_claim = lambda: update(deliveries).where(claims._has_key(*claims._KEY_PARAMETERS), later)


def _early_acknowledgement() -> None:
    task.LATE_ACK_OPTIONS["acks_late"] = False


def _not_mandatory() -> None:
    publish = TaskMessage.publish

    def lightly(parcel: TaskMessage, app: Any, **how: Any) -> None:
        how.pop("mandatory", None)
        publish(parcel, app, **how)

    TaskMessage.publish = lightly


MUTATIONS: dict[str, Callable[[], None]] = {
    "no-sweep": _no_sweep,
    "no-ledger": _no_ledger,
    "no-fence": _no_fence,
    "early-acknowledgement": _early_acknowledgement,
    "not-mandatory": _not_mandatory,
}


def mutate() -> None:
    """Removes the safeguard that CHAOS_MUTANT names."""
    wanted = os.environ.get("CHAOS_MUTANT")
    if wanted:
        MUTATIONS[wanted]()
