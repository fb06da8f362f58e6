"""The outbox without one of its safeguards shows the fault that the safeguard prevents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from sqlalchemy import Update, bindparam, update

from nitro.infrastructure.database import CachedStatement
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.outbox import claims, operations, pending
from nitro.infrastructure.outbox.claims import Claim, claim
from nitro.infrastructure.outbox.schema import deliveries


@pytest.fixture(autouse=True)
def rebuild_statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Builds the cached statements anew, so that they contain the test's patches."""
    monkeypatch.setattr(claims, "_START", CachedStatement(lambda dialect: claims._start_statement(dialect)))
    monkeypatch.setattr(claims, "_FINISH", CachedStatement(lambda dialect: claims._finish_statement(dialect)))
    update_of_claim = claims._update_of_claim
    update_of_claim.cache_clear()
    yield
    update_of_claim.cache_clear()


@pytest.fixture
def queued(evt: Event, app: Celery) -> str:
    """The emission of a tracked delivery to `shop.a`."""
    on(evt, offload=True, name="shop.a")(lambda sender: None)
    return emit(evt).id


def claimed_twice(emission: str) -> bool:
    """Whether a second message of a delivery starts it again while it runs."""
    first, second = (claim(emission, "shop.a", f"boot/{number}-1") for number in (1, 2))
    return isinstance(first, Claim) and isinstance(second, Claim)


def closed_by_the_first(emission: str) -> bool:
    """Whether a run closes a delivery that another one has taken over."""
    run = claim(emission, "shop.a", "boot/1-1")
    assert isinstance(run, Claim)
    assert claims.record_losses(claims.is_run_in(emission, "shop.a", "boot/1-"), "frozen") == 1
    pending.take_due(10)
    assert isinstance(claim(emission, "shop.a", "boot/2-1"), Claim)
    try:
        claims.finish(run)
    except claims.DeliveryLost:
        return False
    (entry,) = operations.read_deliveries()
    return entry.state == "done"


@pytest.mark.parametrize("mutant", [False, True])
def test_the_ledger_keeps_a_second_message_from_running(
    queued: str, monkeypatch: pytest.MonkeyPatch, mutant: bool
) -> None:
    """A claim requires the state `queued`; a claim without this condition starts a running delivery again."""
    if mutant:
        monkeypatch.setattr(claims, "QUEUED", deliveries.c.state)
    assert claimed_twice(queued) is mutant


@pytest.mark.parametrize("mutant", [False, True])
def test_the_fence_keeps_an_old_run_from_closing(queued: str, monkeypatch: pytest.MonkeyPatch, mutant: bool) -> None:
    """Only the latest attempt closes a delivery; without the attempt number an earlier attempt would."""
    if mutant:
        monkeypatch.setattr(claims, "_update_of_claim", any_run)
    assert closed_by_the_first(queued) is mutant


def any_run() -> Update:
    """Returns an update that requires neither the latest attempt nor the state."""
    later = (deliveries.c.attempts >= bindparam("of_attempt")) | (deliveries.c.worker == bindparam("of_worker"))
    return update(deliveries).where(claims._has_key(*claims._KEY_PARAMETERS), later)
