"""Prometheus metrics of the outbox and of an emitter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nitro.infrastructure import database
from nitro.infrastructure.events import Event, Namespace, drain, emit, emit_async, on
from nitro.telemetry import prometheus
from nitro.telemetry.prometheus import OutboxCollector
from support.databases import KINDS, on_database
from support.events import further_observers, no_observers, set_clock
from support.outbox import cancel, dead_letter, finish, forbid_health, make_older, make_overdue, start_run

PATIENCE = 20.0
Sent = Callable[..., list[Any]]
Samples = Callable[[], dict[str, float]]


def scrape(metrics: CollectorRegistry) -> dict[str, float]:
    """Returns the samples of a scrape, with their labels in Prometheus's notation."""
    text = generate_latest(metrics).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {_sample_name(name, labels): value for name, labels, value, *_ in samples if not name.endswith("_created")}


def _sample_name(name: str, labels: dict[str, str]) -> str:
    pairs = ",".join(f"{label}={value}" for label, value in sorted(labels.items()))
    return f"{name}{{{pairs}}}" if pairs else name


@pytest.fixture
def counted() -> Iterator[Samples]:
    """The samples of the emitter's metrics, in a registry of the test."""
    metrics = CollectorRegistry()
    with no_observers():
        prometheus.instrument(metrics)
        yield lambda: scrape(metrics)


@pytest.fixture
def outbox() -> Samples:
    """The samples of the outbox's metrics."""
    metrics = CollectorRegistry()
    metrics.register(OutboxCollector())
    return lambda: scrape(metrics)


def states(samples: dict[str, float]) -> dict[str, float]:
    """Returns the number of deliveries in each state."""
    before, after = "nitro_outbox_deliveries{state=", "}"
    return {name[len(before) : -len(after)]: value for name, value in samples.items() if name.startswith(before)}


def test_an_empty_outbox_is_all_zeros(app: Celery, outbox: Samples) -> None:
    """An empty outbox has the value zero for each state."""
    assert outbox() == {
        "nitro_outbox_up": 1,
        "nitro_outbox_deliveries{state=waiting}": 0,
        "nitro_outbox_deliveries{state=queued}": 0,
        "nitro_outbox_deliveries{state=running}": 0,
        "nitro_outbox_deliveries{state=dead}": 0,
        "nitro_outbox_oldest_waiting_seconds": 0,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_deliveries_are_counted_by_their_state(
    evt: Event, app: Celery, outbox: Samples, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open deliveries and dead letters are counted by state; done and cancelled ones are not."""
    on_database(request, monkeypatch, kind)
    later = Namespace().event("later")
    on(later, offload={"countdown": 3600}, name="shop.later")(lambda sender: None)
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    for _ in range(4):
        emit(later)
    emissions = [emit(evt) for _ in range(7)]
    runs = [start_run(emission.id, "shop.handler") for emission in emissions[:5]]
    dead_letter(runs[0], "no stock")
    finish(runs[1])
    cancel(emissions[6].id)
    assert states(outbox()) == {"waiting": 4, "queued": 1, "running": 3, "dead": 1}


def test_the_oldest_is_the_one_that_is_due(
    evt: Event, app: Celery, outbox: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest age is zero for a countdown, and grows once the delivery is due."""
    on(evt, offload={"countdown": 3600}, name="shop.handler")(lambda sender: None)
    emit(evt)
    assert outbox()["nitro_outbox_oldest_waiting_seconds"] == 0
    make_older(3600)
    ages = [outbox()["nitro_outbox_oldest_waiting_seconds"] for _ in range(2)]
    assert 0 < ages[0] < ages[1] < PATIENCE


def test_what_is_stuck_is_counted_by_queue_and_handler(evt: Event, app: Celery, outbox: Samples) -> None:
    """Stuck deliveries are counted by queue and handler, with zero for open deliveries that are not stuck."""
    on(evt, offload={"queue": "mails"}, name="shop.mail")(lambda sender: None)
    on(evt, offload=True, name="shop.bill")(lambda sender: None)
    emit(evt)
    emit(evt)
    make_overdue("shop.mail", 600)
    samples = outbox()
    assert samples["nitro_outbox_stuck{handler=shop.mail,queue=mails}"] == 2
    assert samples["nitro_outbox_stuck{handler=shop.bill,queue=celery}"] == 0


def test_a_database_that_is_away_is_a_metric(
    app: Celery, outbox: Samples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A scrape without a database has only `nitro_outbox_up 0`, and the log has the reason."""
    monkeypatch.setenv("NITRO_DB_URL", f"sqlite:///{tmp_path / 'missing' / 'nitro.db'}")
    database.reset()
    assert outbox() == {"nitro_outbox_up": 0}
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("nitro.outbox", "the outbox cannot be measured")
    monkeypatch.setenv("NITRO_DB_URL", f"sqlite:///{tmp_path / 'nitro.db'}")
    database.reset()
    assert outbox()["nitro_outbox_up"] == 1


def test_to_register_asks_no_database(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registering the collector reads no database."""
    forbid_health(monkeypatch)
    CollectorRegistry().register(OutboxCollector())


def test_two_scrapes_differ_by_what_was_emitted_between(evt: Event, app: Celery, outbox: Samples, sent: Sent) -> None:
    """A scrape shows the present deliveries and nothing of an earlier scrape."""
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    before = states(outbox())
    emit(evt)
    assert (before["queued"], states(outbox())["queued"]) == (0, 1)


def test_emissions_are_counted_by_event(evt: Event, counted: Samples) -> None:
    """Emissions by `emit` and `emit_async` are counted by event; other counters have no samples."""
    other = Namespace().event("order.paid")
    on(evt)(lambda sender: None)
    emit(evt)
    asyncio.run(_emit_async(evt))
    emit(other)
    assert {name: value for name, value in counted().items() if "inline" not in name} == {
        "nitro_emissions_total{event=order.placed}": 2,
        "nitro_emissions_total{event=order.paid}": 1,
    }


async def _emit_async(evt: Event) -> None:
    await emit_async(evt)


def test_cancellations_are_counted_by_handler(evt: Event, counted: Samples) -> None:
    """Cancellations are counted by the handler that cancelled."""
    on(evt, name="shop.gate")(lambda sender: sender != "mallory")
    on(evt, name="shop.limit")(lambda sender: sender != "eve")
    for sender in ("ada", "mallory", "eve", "eve"):
        emit(evt, sender)
    samples = counted()
    assert samples["nitro_emissions_total{event=order.placed}"] == 4
    assert samples["nitro_cancellations_total{event=order.placed,handler=shop.gate}"] == 1
    assert samples["nitro_cancellations_total{event=order.placed,handler=shop.limit}"] == 2
    assert not [name for name in samples if name.startswith("nitro_emit_errors")]


@pytest.mark.parametrize("function", ["emit", "emit_async"])
def test_errors_are_counted_and_raised(evt: Event, counted: Samples, function: str) -> None:
    """An emission that raises is counted as emission and as error, and its error propagates."""

    @on(evt, name="shop.handler")
    def handler(sender: object) -> None:
        raise ValueError("no stock")

    with pytest.raises(ValueError, match="no stock"):
        emit(evt) if function == "emit" else asyncio.run(_emit_async(evt))
    samples = counted()
    assert samples["nitro_emissions_total{event=order.placed}"] == 1
    assert samples["nitro_emit_errors_total{event=order.placed}"] == 1
    assert samples["nitro_inline_seconds_count{event=order.placed,handler=shop.handler}"] == 1


def test_a_handler_that_fails_and_stops_nothing_is_no_error_of_the_emit(evt: Event, counted: Samples) -> None:
    """A failure with `on_error="log"` is no error of the emit."""
    on(evt, on_error="log", name="shop.handler")(lambda sender: 1 / 0)
    emit(evt)
    assert "nitro_emit_errors_total{event=order.placed}" not in counted()


def test_the_time_of_inline_handlers_is_measured(evt: Event, counted: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """The duration of each inline handler that ran is measured; offloaded handlers are not."""
    clock = iter(range(100))
    set_clock(monkeypatch, lambda: float(next(clock)))
    on(evt, priority=2, name="shop.first")(lambda sender: next(clock))
    on(evt, priority=1, name="shop.second")(lambda sender: False)
    on(evt, name="shop.third")(lambda sender: None)
    emit(evt)
    sums = {name: value for name, value in counted().items() if name.startswith("nitro_inline_seconds_sum")}
    assert sums == {
        "nitro_inline_seconds_sum{event=order.placed,handler=shop.first}": 2,
        "nitro_inline_seconds_sum{event=order.placed,handler=shop.second}": 1,
    }
    samples = counted()
    bucket = "nitro_inline_seconds_bucket{event=order.placed,handler=shop.first,le="
    limits = ["0.0001", "0.001", "0.005", "0.01", "0.05", "0.1", "0.5", "1.0", "5.0", "+Inf"]
    assert [name for name in samples if name.startswith(bucket)] == [f"{bucket}{limit}}}" for limit in limits]
    assert [samples[f"{bucket}{limit}}}"] for limit in limits[-3:]] == [0, 1, 1]


def test_async_handlers_that_are_awaited_are_measured(evt: Event, counted: Samples) -> None:
    """Async handlers that `emit_async` awaits are measured."""

    @on(evt, name="shop.handler")
    async def handler(sender: object) -> None:
        await asyncio.sleep(0)

    asyncio.run(_emit_async(evt))
    assert counted()["nitro_inline_seconds_count{event=order.placed,handler=shop.handler}"] == 1


def test_async_handlers_that_emit_starts_are_not(evt: Event, counted: Samples) -> None:
    """Async handlers that `emit` starts are not measured."""
    begin = asyncio.Event()

    @on(evt, name="shop.handler")
    async def handler(sender: object) -> None:
        await begin.wait()

    async def emitted() -> None:
        emit(evt)
        begin.set()

    asyncio.run(emitted())
    assert drain(PATIENCE)
    assert "nitro_inline_seconds_count{event=order.placed,handler=shop.handler}" not in counted()


def test_async_handlers_that_end_before_the_emit_that_has_started_them_are_not(evt: Event, counted: Samples) -> None:
    """An async handler that ends before its `emit` is not measured either."""

    @on(evt, name="shop.handler", priority=1)
    async def handler(sender: object) -> None:
        await asyncio.sleep(0)

    on(evt, name="shop.slow")(lambda sender: drain(PATIENCE) and None)
    emission = emit(evt)
    assert [name for name in counted() if name.startswith("nitro_inline_seconds_count")] == [
        "nitro_inline_seconds_count{event=order.placed,handler=shop.slow}"
    ]
    assert emission.timings["shop.handler"][1] is None


def test_an_emission_inside_an_emission_is_counted_as_well(evt: Event, counted: Samples) -> None:
    """An emission inside an emission is counted too."""
    other = Namespace().event("order.paid")
    on(evt)(lambda sender: emit(other) and None)
    emit(evt)
    samples = counted()
    assert samples["nitro_emissions_total{event=order.placed}"] == 1
    assert samples["nitro_emissions_total{event=order.paid}"] == 1


def test_emissions_before_it_was_called_are_not_counted(evt: Event) -> None:
    """Emissions before `instrument` are not counted; later ones are, of every event."""
    on(evt)(lambda sender: None)
    emit(evt)
    metrics = CollectorRegistry()
    with further_observers():
        prometheus.instrument(metrics)
        emit(evt)
    emit(evt)
    assert scrape(metrics)["nitro_emissions_total{event=order.placed}"] == 1


def test_a_second_call_counts_nothing_twice(evt: Event, counted: Samples) -> None:
    """A second call of `instrument` for a registry has no effect; another registry counts too."""
    first, second = CollectorRegistry(), CollectorRegistry()
    for metrics in (first, second, first, second):
        prometheus.instrument(metrics)
    emit(evt)
    assert [scrape(each)["nitro_emissions_total{event=order.placed}"] for each in (first, second)] == [1, 1]
