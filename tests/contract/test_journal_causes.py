"""The recorded cause of an emission, and the time for which emissions are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from nitro import cli
from nitro.infrastructure.events import Event, Namespace, drain, emit, emit_async, on
from support import outbox
from support.journals import Recorded, recorded, rows

pytestmark = pytest.mark.usefixtures("journal_on")

FUNCTIONS = ("emit", "emit_async")
SOON = timedelta(minutes=1)


@pytest.fixture
def further() -> Event:
    """The event that a handler emits."""
    return Namespace().event("further")


def handlers_that_emit(further: Event) -> dict[str, Any]:
    """Returns a handler of each kind, by its name."""

    def sync(sender: object) -> None:
        emit(further)

    def generator(sender: object) -> Iterator[None]:
        yield
        emit(further)

    async def coroutine(sender: object) -> None:
        await asyncio.sleep(0)
        emit(further)

    async def awaiting(sender: object) -> None:
        await asyncio.sleep(0)
        await emit_async(further)

    async def threaded(sender: object) -> None:
        await asyncio.to_thread(emit, further)

    kinds = (sync, generator, coroutine, awaiting, threaded)
    return {kind.__name__: kind for kind in kinds}


def check_caused(first: Recorded, second: Recorded, handler: str) -> None:
    """Asserts that a handler of the first emission has emitted the second."""
    assert (second.parent, second.root, second.story["caused_in"]) == (first.id, first.root or first.id, handler)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", ["sync", "generator", "coroutine", "awaiting", "threaded"])
def test_the_handler_that_emitted_is_recorded(evt: Event, further: Event, function: str, kind: str) -> None:
    """The handler that emits is recorded with parent and root, among others and of any kind."""
    on(evt, name="shop.before", priority=5)(lambda sender: None)
    on(evt, name="shop.cause")(handlers_that_emit(further)[kind])
    on(evt, name="shop.after", priority=-5)(lambda sender: None)
    if function == "emit":
        emit(evt)
        assert drain(20)
    else:
        asyncio.run(emit_async(evt))
    first, second = recorded(2)
    assert (first.event, second.event) == ("order.placed", "further")
    check_caused(first, second, "shop.cause")


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
@pytest.mark.parametrize("kind", ["sync", "generator", "coroutine", "awaiting", "threaded"])
def test_the_handler_of_a_worker_is_recorded(
    evt: Event, further: Event, app: Celery, work: Callable[..., Any], delivery: str, kind: str
) -> None:
    """The handler that emits in a worker is recorded as the cause."""
    on(evt, name="shop.cause", offload={"delivery": delivery})(handlers_that_emit(further)[kind])
    on(further, name="shop.end")(lambda sender: None)
    work(app).only(emit(evt))
    first, second = recorded(2)
    assert second.event == "further"
    check_caused(first, second, "shop.cause")


def test_the_root_is_the_first_of_all(evt: Event, further: Event) -> None:
    """The root of a chain is its first emission; the parent is the emission right before."""
    third = Namespace().event("third")
    on(evt, name="shop.first")(lambda sender: emit(further) and None)
    on(further, name="shop.second")(lambda sender: emit(third) and None)
    emit(evt)
    one, two, three = recorded(3)
    check_caused(one, two, "shop.first")
    check_caused(two, three, "shop.second")
    assert three.root == one.id


def test_a_condition_is_no_handler(evt: Event, further: Event) -> None:
    """The emission of a condition has a parent and no handler as its cause."""
    on(evt, name="shop.before", priority=5)(lambda sender: None)
    on(evt, name="shop.asked", condition=lambda sender: emit(further) is not None)(lambda sender: None)
    emit(evt)
    first, second = recorded(2)
    assert (second.event, second.parent, second.story["caused_in"]) == ("further", first.id, None)


def test_what_no_handler_emits_has_no_cause(evt: Event, further: Event) -> None:
    """An emission outside of handlers has no cause, also after another emission."""
    on(evt, name="shop.before")(lambda sender: None)
    emit(evt)
    emit(further)
    assert [(row.parent, row.root, row.story["caused_in"]) for row in recorded(2)] == [(None, None, None)] * 2


@pytest.fixture
def shop(evt: Event, app: Celery) -> Event:
    """An event with a tracked handler."""
    on(evt, name="shop.mail", offload=True)(lambda sender: None)
    return evt


def claimed(event: Event) -> outbox.Claim:
    """Emits, and returns the claim of the one delivery."""
    return outbox.start_run(emit(event).id, "shop.mail", "boot/1")


@pytest.mark.usefixtures("database_kind")
def test_old_emissions_are_forgotten(evt: Event, further: Event, app: Celery) -> None:
    """Old emissions are deleted, unless they have an open, dead or done delivery."""
    on(evt, name="shop.mail", offload=True)(lambda sender: None)
    opened, dead, done = emit(evt), claimed(evt), claimed(evt)
    outbox.dead_letter(dead, "no mail")
    outbox.finish(done)
    emit(further)
    recorded(4)
    assert outbox.purge_emissions(datetime.now(UTC) + SOON) == 1
    assert {row.id for row in rows()} == {opened.id, dead.emission, done.emission}


def test_what_is_not_old_is_kept(further: Event) -> None:
    """Emissions that are younger than the given time are kept."""
    emit(further)
    recorded()
    assert outbox.purge_emissions(datetime.now(UTC) - SOON) == 0
    assert len(rows()) == 1


def test_they_are_forgotten_a_few_at_a_time(further: Event) -> None:
    """Each call deletes a limited number of emissions, so that its transaction is short."""
    for _ in range(5):
        emit(further)
    recorded(5)
    assert [outbox.purge_emissions(datetime.now(UTC) + SOON, limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_a_worker_forgets_by_itself(further: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's sweep deletes emissions that are older than the retention period."""
    emit(further)
    recorded()
    assert outbox.purge_old(monkeypatch) == 0
    assert outbox.purge_old(monkeypatch, older_than=-SOON) == 1
    assert rows() == []


@pytest.mark.parametrize(
    ("states", "remaining", "message"), [([], 1, "deleted from the journal: 2\n"), (["--state", "cancelled"], 4, "")]
)
def test_purge_deletes_them_with_what_is_done(
    shop: Event, further: Event, states: list[str], remaining: int, message: str
) -> None:
    """`outbox purge` deletes journal entries with the done deliveries, and keeps both otherwise."""
    outbox.finish(claimed(shop))
    opened = emit(shop)
    for _ in range(2):
        emit(further)
    recorded(4)
    purged = CliRunner().invoke(cli.nitro, ["outbox", "purge", "--before", "2999-12-31", "--yes", *states])
    assert (purged.exit_code, purged.stdout.partition("\n")[2]) == (0, message)
    assert len(rows()) == remaining
    assert opened.id in {row.id for row in rows()}
    assert outbox.count_by_state()["queued"] == 1
