"""Deliveries that are due, queued or running for longer than the greatest age are stuck: contract section 13."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import event, insert, update

from nitro.infrastructure.database import engine, write_connection
from nitro.infrastructure.events import Emission, Event, Namespace, emit, on
from nitro.infrastructure.outbox import claims, operations, pending
from nitro.infrastructure.outbox.claims import Claim, claim
from nitro.infrastructure.outbox.health import MAX_AGE_SECONDS, read_health
from nitro.infrastructure.outbox.schema import deliveries, emissions, min_id_at, now
from support.databases import KINDS, on_database

LONG = MAX_AGE_SECONDS + 300.0
MAIL = "shop.mail"


@pytest.fixture(params=KINDS)
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, app: Celery) -> Event:
    """An event with one tracked handler, `shop.mail`, on each kind of database."""
    on_database(request, monkeypatch, request.param)
    return with_mail()


def with_mail(**options: Any) -> Event:
    """Returns an event that `shop.mail` hears, with these options."""
    evt = Namespace().event("order.placed")
    on(evt, offload=options or True, name=MAIL)(lambda sender: None)
    return evt


def started_run(emission: Emission) -> Claim:
    """Claims the delivery of an emission and returns its run."""
    run = claim(emission.id, MAIL, "boot/7-1")
    assert isinstance(run, Claim)
    return run


def after(seconds: float) -> None:
    """Moves all times of the deliveries so many seconds into the past."""
    times = ("due_at", "due_since", "published_at", "started_at")
    with write_connection() as connection:
        earlier = {name: getattr(deliveries.c, name) - seconds for name in times}
        connection.execute(update(deliveries).values(earlier))


def stuck() -> list[tuple[str, str, str, int]]:
    """Returns handler, queue, state and number of each group with stuck deliveries."""
    return [(group.handler, group.queue, group.state, group.stuck) for group in read_health().stuck_groups]


def test_what_is_queued_for_long_is_stuck(placed: Event) -> None:
    """A delivery that is queued for too long is stuck; its group has the age of the oldest delivery."""
    emit(placed, "ada")
    after(LONG)
    emit(placed, "bob")
    assert stuck() == [(MAIL, "celery", "queued", 1)]
    (group,) = read_health().groups
    assert group.count == 2
    assert LONG <= (group.age or 0) < LONG + 60


def test_what_is_young_is_not(placed: Event) -> None:
    """A delivery that is due for less than the greatest age is not stuck."""
    emit(placed, "ada")
    after(MAX_AGE_SECONDS - 60)
    assert stuck() == []


def test_the_greatest_age_can_be_another(placed: Event) -> None:
    """An operator can set another greatest age."""
    emit(placed, "ada")
    after(MAX_AGE_SECONDS - 60)
    assert [group.stuck for group in read_health(max_age=60.0).stuck_groups] == [1]


def test_neither_a_lease_nor_a_publication_hides_it(placed: Event) -> None:
    """A delivery whose message was lost and published again counts as due the whole time."""
    emit(placed, "ada")
    for _ in range(4):
        after(LONG / 4)
        pending.requeue_lost(lambda queues: dict.fromkeys(queues, 0))
        assert len(pending.take_due(10)) == 1
    after(20)
    pending.requeue_lost(lambda queues: dict.fromkeys(queues, 7))
    assert stuck() == [(MAIL, "celery", "queued", 1)]


def test_a_worker_that_does_not_know_the_handler_does_not_hide_it(placed: Event) -> None:
    """A delivery that waits again because a worker lacks its handler keeps its age."""
    emission = emit(placed, "ada")
    after(LONG)
    claims.requeue_unknown(emission.id, MAIL, 10, "unknown")
    assert stuck() == [(MAIL, "celery", "waiting", 1)]


def test_a_broker_that_refuses_does_not_hide_it(placed: Event) -> None:
    """A delivery that waits again because the broker refused it keeps its age."""
    emit(placed, "ada")
    after(LONG)
    pending.requeue_lost(lambda queues: dict.fromkeys(queues, 0))
    pending.requeue_unconfirmed(pending.take_due(10), OSError("away"), "unknown")
    assert stuck() == [(MAIL, "celery", "waiting", 1)]


def test_a_countdown_is_not_due(app: Celery) -> None:
    """A delivery with a countdown is not due before the countdown is over."""
    emit(with_mail(countdown=3600), "ada")
    after(LONG)
    assert (stuck(), read_health().oldest_waiting_age) == ([], None)
    after(3600)
    assert stuck() == [(MAIL, "celery", "waiting", 1)]


def test_a_retry_is_not_due(placed: Event) -> None:
    """A delivery that waits for a retry is not due; its age begins when the retry is due."""
    emission = emit(placed, "ada")
    after(LONG)
    claims.reschedule(started_run(emission), 600, "OSError: away")
    assert (stuck(), read_health().oldest_waiting_age) == ([], None)
    after(600 + MAX_AGE_SECONDS - 60)
    assert stuck() == []
    after(120)
    assert stuck() == [(MAIL, "celery", "waiting", 1)]


@pytest.mark.parametrize("reason", ["lost", "given back", "replayed"])
def test_what_begins_anew_has_its_age_from_then(placed: Event, reason: str) -> None:
    """A delivery that is run again has its age from the end of the earlier run."""
    run = started_run(emit(placed, "ada"))
    after(LONG)
    if reason == "lost":
        claims.record_losses(claims.is_run_of_worker("boot"), "its worker died")
    elif reason == "given back":
        claims.requeue_runs("boot")
    else:
        claims.dead_letter(run, "no")
        operations.replay(operations.has_id_in([run.emission]))
    assert stuck() == []
    after(LONG)
    assert stuck() == [(MAIL, "celery", "waiting", 1)]


def test_a_run_that_lasts_is_stuck_and_names_its_worker(placed: Event) -> None:
    """A running delivery is stuck by the age of its run, and names its worker."""
    emission = emit(placed, "ada")
    after(LONG)
    started_run(emission)
    assert stuck() == []
    after(LONG)
    (group,) = read_health().stuck_groups
    assert (group.state, group.worker) == ("running", "a worker that is gone, process 7")


@pytest.mark.parametrize("limit", [{"time_limit": 3600}, {"soft_time_limit": 3600}])
def test_a_longer_time_limit_of_its_handler_is_waited_for(app: Celery, limit: dict[str, float]) -> None:
    """A time limit above the greatest age delays `stuck` for a run, not for a queued delivery."""
    evt = with_mail(**limit)
    started_run(emit(evt, "ada"))
    after(LONG)
    assert stuck() == []
    emit(evt, "bob")
    after(LONG)
    assert stuck() == [(MAIL, "celery", "queued", 1)]
    after(3600)
    assert len(stuck()) == 2


def test_a_shorter_time_limit_changes_nothing(app: Celery) -> None:
    """A time limit below the greatest age leaves the greatest age as it is."""
    started_run(emit(with_mail(time_limit=30), "ada"))
    after(MAX_AGE_SECONDS - 60)
    assert stuck() == []


def test_rows_of_an_older_version_are_due_since_their_emission(placed: Event) -> None:
    """Rows without `due_since` are due since their emission, or since the end of their countdown."""
    old, clock = min_id_at(datetime.now(UTC) - timedelta(seconds=LONG)), datetime.now(UTC).timestamp()
    row = {"promise": "at-least-once", "mode": "snapshot", "queue": "celery", "handler": MAIL, "due_since": None}
    with write_connection() as connection:
        for number, (state, due_at) in enumerate([("queued", clock + 60), ("waiting", 0.0), ("waiting", clock + 60)]):
            identity = f"{old}-7000-8000-00000000000{number}"
            connection.execute(insert(emissions).values(id=identity, sender="ada"))
            connection.execute(
                insert(deliveries).values(
                    {**row, "emission": identity, "id": identity, "state": state, "due_at": due_at}
                )
            )
    assert sorted(stuck()) == [(MAIL, "celery", "queued", 1), (MAIL, "celery", "waiting", 1)]
    assert LONG <= (read_health().oldest_waiting_age or 0) < LONG + 60


def test_what_is_closed_is_not_stuck(placed: Event) -> None:
    """Done, dead and cancelled deliveries are not stuck."""
    claims.finish(started_run(emit(placed, "ada")))
    claims.dead_letter(started_run(emit(placed, "bob")), "no")
    operations.cancel(emit(placed, "eve").id)
    after(LONG)
    assert read_health().groups == ()


def test_it_is_one_pass_over_what_is_open(placed: Event) -> None:
    """Health is read with the indexes of open and dead deliveries, so that closed rows cost nothing."""
    rows = [
        {"emission": f"{number:036}", "id": f"{number:036}", "state": "queued" if number % 500 == 0 else "done"}
        for number in range(5000)
    ]
    more = {"handler": MAIL, "promise": "at-least-once", "mode": "snapshot", "queue": "celery"}
    times = {"due_at": 0.0, "due_since": now()}
    with write_connection() as connection:
        connection.execute(insert(emissions), [{"id": row["emission"], "sender": "ada"} for row in rows])
        closed = [row | more for row in rows if row["state"] == "done"]
        connection.execute(insert(deliveries).values(**times, closed_at=now()), closed)
        connection.execute(insert(deliveries).values(times), [row | more for row in rows if row["state"] == "queued"])
        if engine().dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")
    read_health()  # reads and caches the version of the tables
    statements: list[tuple[str, Any]] = []
    event.listen(engine(), "before_cursor_execute", lambda *call: statements.append(call[2:4]))
    assert read_health().deliveries["queued"] == 10
    statements[:] = [(sql, values) for sql, values in statements if sql.startswith("SELECT")]
    assert len(statements) == 2
    explain = "EXPLAIN QUERY PLAN " if engine().dialect.name == "sqlite" else "EXPLAIN "
    with engine().connect() as connection:
        plans = [connection.exec_driver_sql(explain + sql, values).all() for sql, values in list(statements)]
    lines = [str(line[-1]) for plan in plans for line in plan]
    reads = [line for line in lines if "nitro_delivery" in line and "Recheck" not in line]
    indexes = ("ix_nitro_delivery_open", "ix_nitro_delivery_dead", "Bitmap Heap Scan")
    assert all(any(index in line for index in indexes) for line in reads), lines
    assert any("ix_nitro_delivery_open" in line for line in reads)


def test_an_untracked_delivery_is_stuck_only_while_it_waits(app: Celery, placed: Event) -> None:
    """An untracked delivery is stuck only while it waits, because its handler's end is never recorded."""
    emit(placed, "ada")
    with write_connection() as connection:
        connection.execute(update(deliveries).values(promise="broker"))
    after(LONG)
    assert stuck() == []
    pending.requeue_lost(lambda queues: dict.fromkeys(queues, 0))
    assert stuck() == [(MAIL, "celery", "waiting", 1)]
