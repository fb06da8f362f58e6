"""Sentry shows a worker's handler in the trace of its emit; tests run in new processes, as Sentry patches Celery."""

from __future__ import annotations

import json
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest

BEGIN = """
    import json
    import os

    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    envelope_items = []


    class InMemory(Transport):
        def capture_envelope(self, envelope):
            envelope_items.extend((item.type, item.payload.json) for item in envelope.items)


    def init(**options):
        sentry_sdk.init("http://key@localhost/1", transport=InMemory, traces_sample_rate=1.0, **options)


    if os.environ["SENTRY"] == "with Celery":
        init(integrations=[CeleryIntegration()])
    elif os.environ["SENTRY"] == "alone":
        init(default_integrations=False, auto_enabling_integrations=False)

    from contextvars import ContextVar
    from celery import Celery
    from celery.contrib.testing.worker import start_worker
    from nitro.infrastructure.events import Event, emit, on
    from nitro.infrastructure.offload import bind
    from nitro.telemetry import carry, sentry
    from pytest import MonkeyPatch
    from support.broker import drain_publisher
    from support.faults import use_publisher_thread
    from support.telemetry import count_propagators

    if os.environ["BROKER"] == "server":
        use_publisher_thread(MonkeyPatch())
    sentry.instrument()
    app = Celery("shop", set_as_current=False)
    app.conf.update(
        broker_url="memory://",
        result_backend="cache+memory://",
        broker_transport_options={"polling_interval": 0.005},
        worker_hijack_root_logger=False,
    )
    bind(app)
    placed = Event("order.placed")


    def checkout(name):
        with sentry_sdk.start_transaction(name=name, op="http.server"):
            with sentry_sdk.start_span(op="pay", name=name) as span:
                emission = emit(placed, name)
        return emission, [span.trace_id, span.span_id]


    def run(*emissions):
        with start_worker(app, perform_ping_check=False, pool="solo", loglevel="WARNING"):
            for emission in emissions:
                for task_id in emission.offloaded.values():
                    app.AsyncResult(task_id).get(timeout=20, interval=0.02, propagate=False)


    def captured(kind):
        return [event for type, event in envelope_items if type == kind]


    def traces(*handlers):
        pairs = [(event["transaction"], event["contexts"]["trace"]) for event in captured("transaction")]
        return [[name, trace["trace_id"], trace.get("parent_span_id")] for name, trace in pairs if name in handlers]
"""
Run = Callable[..., Any]


@pytest.fixture
def run(fresh_process: Callable[..., Any]) -> Run:
    """Runs a script with Sentry, an app `app` and an event `placed`, and returns the JSON that it prints last."""

    def run_script(source: str, *, sentry: str = "with Celery", broker: str = "embedded") -> Any:
        process = fresh_process(dedent(BEGIN) + dedent(source), SENTRY=sentry, BROKER=broker)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    return run_script


@pytest.mark.parametrize("broker", ["embedded", "server"])
def test_a_run_is_in_the_trace_of_its_emit(run: Run, broker: str) -> None:
    """Each run is in the trace of its emit, directly below the emitting span, whoever publishes the message."""
    source = """
        options = {
            "shop.untracked": {"delivery": "broker"},
            "shop.tracked": {"delivery": "at-least-once"},
            "shop.relayed": {"delivery": "at-least-once", "countdown": 0.001},
        }
        for name in options:
            on(placed, offload=options[name], name=name)(eval("lambda sender: None"))
        emissions, spans = zip(*[checkout(name) for name in ("first", "second", "third")])
        drain_publisher()
        run(*emissions)
        print(json.dumps([{name: traces(name) for name in options}, spans]))
    """
    runs_by_handler, spans = run(source, broker=broker)
    assert len({trace for trace, _ in spans}) == 3
    assert list(runs_by_handler) == ["shop.untracked", "shop.tracked", "shop.relayed"]
    for handler, runs in runs_by_handler.items():
        assert sorted(runs) == sorted([handler, *span] for span in spans), handler


def test_what_a_handler_emits_is_in_the_trace(run: Run) -> None:
    """A handler's emit is in the trace, with a retry of its handler and the final error."""
    source = """
        further = Event("order.paid")
        at_once = {"retry_backoff": False, "default_retry_delay": 0, "max_retries": 1}


        @on(placed, offload=True, name="shop.first")
        def first(sender):
            further_emissions.append(emit(further))


        @on(further, offload={"delivery": "broker", **at_once}, name="shop.second")
        def second(sender):
            raise ValueError("no stock")


        further_emissions = []
        emission, span = checkout("first")
        run(emission)
        run(*further_emissions)
        errors = [event["contexts"]["trace"]["trace_id"] for event in captured("event")]
        print(json.dumps([traces("shop.first"), traces("shop.second"), errors, span]))
    """
    first, second, errors, (trace, span) = run(source)
    assert first == [["shop.first", trace, span]]
    assert [(name, within) for name, within, _ in second] == [("shop.second", trace)] * 2
    assert errors == [trace]


def test_other_things_travel_beside_it(run: Run) -> None:
    """Context variables, the user's headers and baggage arrive beside the trace, for each handler and attempt."""
    source = """
        from opentelemetry import baggage
        from opentelemetry.context import attach
        from opentelemetry.sdk.trace import TracerProvider
        from nitro.telemetry import opentelemetry

        tenant = ContextVar("tenant")
        carry(tenant)
        opentelemetry.instrument(TracerProvider())
        tenant.set("t1")
        attach(baggage.set_baggage("shop", "s1"))
        at_once = {"retry_backoff": False, "default_retry_delay": 0, "headers": {"user": "u1"}}
        seen = []


        def handle(name):
            headers = app.tasks[name].request.headers
            seen.append([name, tenant.get(), baggage.get_baggage("shop"), headers["user"]])
            if [seen_by for seen_by, *_ in seen].count(name) == 1:
                raise ConnectionError("again")


        @on(placed, offload={"delivery": "broker", **at_once}, name="shop.untracked")
        def untracked(sender):
            handle("shop.untracked")


        @on(placed, offload={"delivery": "at-least-once", **at_once}, name="shop.tracked")
        def tracked(sender):
            handle("shop.tracked")


        emission, span = checkout("first")
        run(emission)
        print(json.dumps([seen, traces("shop.untracked", "shop.tracked"), span]))
    """
    seen, runs, (trace, _) = run(source)
    assert sorted(seen) == sorted([name, "t1", "s1", "u1"] for name in ("shop.tracked", "shop.untracked") for _ in "12")
    assert {within for _, within, _ in runs} == {trace}


def test_an_emitter_needs_no_integration_with_celery(run: Run) -> None:
    """An emitter without Sentry's Celery integration sends the headers that a worker's integration reads."""
    source = """
        tenant = ContextVar("tenant")
        carry(tenant)
        tenant.set("t1")


        @on(placed, offload={"delivery": "broker", "headers": {"user": "u1"}}, name="shop.handler")
        def handler(sender):
            headers = handler.task.request.headers
            return [tenant.get("not set"), headers["sentry-trace"], headers["baggage"], headers["user"]]


        emission, span = checkout("first")
        run(emission)
        (task_id,) = emission.offloaded.values()
        print(json.dumps([app.AsyncResult(task_id).get(), span]))
    """
    (tenant, traceparent, baggage, user), (trace, span) = run(source, sentry="alone")
    assert (tenant, user) == ("t1", "u1")
    assert traceparent == f"{trace}-{span}-1"
    assert f"sentry-trace_id={trace}" in baggage


def test_without_sentry_it_changes_nothing(run: Run) -> None:
    """`instrument` has no effect in a program without Sentry."""
    source = """
        @on(placed, offload=True, name="shop.handler")
        def handler(sender):
            return "done"


        emission = emit(placed)
        run(emission)
        (task_id,) = emission.offloaded.values()
        print(json.dumps(app.AsyncResult(task_id).get()))
    """
    assert run(source, sentry="never") == "done"


def test_a_second_call_sends_nothing_twice(run: Run) -> None:
    """A second call of `instrument` has no effect."""
    source = """

        sentry.instrument()
        print(json.dumps(count_propagators()))
    """
    assert run(source) == 1
