"""OpenTelemetry shows one trace from an emit to its handlers in workers and to their emits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar

import pytest
from celery import Celery
from opentelemetry import baggage
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from nitro.domain.entities.base_entity import Entity
from nitro.errors import PayloadError
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, Namespace, drain, emit, emit_async, on
from nitro.telemetry import opentelemetry
from support import outbox
from support.brokers import broker_away
from support.telemetry import no_instrumentation
from support.waiting import until

Sent = Callable[..., list[Any]]
Work = Callable[..., Any]
PROMISES = ("at-most-once", "broker", "at-least-once", "exactly-once")
AT_ONCE = {"retry_backoff": False, "default_retry_delay": 0}
SOON = 0.001
PATIENCE = 20.0


class Traced(Entity):
    """An entity that shows only class and id."""

    email: str = ""


class TracedOpenly(Entity):
    """An entity that shows its status."""

    __nitro_show__: ClassVar[tuple[str, ...]] = ("status",)

    status: str = ""
    email: str = ""


class Spans:
    """The ended spans, with the provider that records them."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("shop")

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        """The spans in the order of their ends."""
        return self._exporter.get_finished_spans()

    def named(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """Waits until there are so many spans of a name, and returns them."""
        named = until(lambda: spans if len(spans := [span for span in self.all if span.name == name]) >= count else [])
        assert len(named) == count
        return named

    def only(self, name: str) -> ReadableSpan:
        """Returns the only span of a name."""
        return self.named(name)[0]

    @property
    def traces(self) -> set[int]:
        """The ids of all traces."""
        return {trace_of(span) for span in self.all}


def trace_of(span: ReadableSpan) -> int:
    """Returns the trace id of a span."""
    return span.get_span_context().trace_id


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether a span is directly below another one in the same trace."""
    reference, context = child.parent, parent.get_span_context()
    return reference is not None and (reference.trace_id, reference.span_id) == (context.trace_id, context.span_id)


@pytest.fixture
def spans() -> Iterator[Spans]:
    """The spans of this process during the test."""
    recorded = Spans()
    with no_instrumentation():
        opentelemetry.instrument(recorded.provider)
        yield recorded
    recorded.provider.shutdown()


def relay(app: Celery, count: int = 1) -> None:
    """Runs a relay until it has published so many deliveries."""
    step, published = outbox.Relay(app).step, list[int]()
    until(lambda: published.append(step()) or sum(published) >= count)


@pytest.mark.parametrize("delivery", PROMISES)
def test_a_run_is_below_its_emit(evt: Event, app: Celery, work: Work, spans: Spans, delivery: str) -> None:
    """A run with any delivery promise is below its emit, with the documented attributes."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: None)
    emission = emit(evt, Traced(id="o1"))
    work(app).only(emission)
    emit_span, run_span = spans.only("emit order.placed"), spans.only("run shop.handler")
    assert emit_span.parent is None
    assert is_child(run_span, emit_span)
    assert (emit_span.kind, run_span.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(emit_span.attributes or {}) == {
        "messaging.system": "nitro",
        "messaging.message.id": emission.id,
        "messaging.message.conversation_id": emission.id,
        "nitro.event": "order.placed",
        "nitro.sender": "Traced:o1",
        "nitro.queued": ("shop.handler",),
    }
    assert dict(run_span.attributes or {}) == {
        "messaging.system": "nitro",
        "messaging.operation.type": "process",
        "messaging.message.id": emission.id,
        "nitro.event": "order.placed",
        "nitro.handler": "shop.handler",
        "nitro.attempt": 1,
    }


@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
def test_each_emission_has_its_own_trace(evt: Event, app: Celery, work: Work, spans: Spans, delivery: str) -> None:
    """Each emission of one handler has its own trace."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: None)
    emissions = [emit(evt) for _ in range(3)]
    worker = work(app)
    for emission in emissions:
        worker.only(emission)
    pairs = zip(spans.named("emit order.placed", 3), spans.named("run shop.handler", 3), strict=True)
    assert all(is_child(run, emitting) for emitting, run in pairs)
    assert len(spans.traces) == 3


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_handler_emits_is_below_its_run(
    evt: Event, app: Celery, work: Work, spans: Spans, delivery: str, kind: str
) -> None:
    """An emit in a handler is below the handler's run, in the trace of the first emit."""
    further = Namespace().event("order.paid")
    on(further, offload={"delivery": delivery}, name="shop.second")(lambda sender: None)

    def sync(sender: object) -> None:
        emit(further)

    async def coroutine(sender: object) -> None:
        await asyncio.sleep(0)
        await emit_async(further)

    functions: dict[str, Any] = {"sync": sync, "async": coroutine}
    on(evt, offload={"delivery": delivery}, name="shop.first")(functions[kind])
    emission = emit(evt)
    work(app)
    names = ["emit order.placed", "run shop.first", "emit order.paid", "run shop.second"]
    chain = [spans.only(name) for name in names]
    assert [is_child(below, above) for above, below in pairwise(chain)] == [True, True, True]
    assert len(spans.traces) == 1
    attributes = [span.attributes or {} for span in (chain[0], chain[2])]
    assert [facts["messaging.message.conversation_id"] for facts in attributes] == [emission.id, emission.id]


def test_an_inline_handlers_emit_is_below_its_emit(evt: Event, spans: Spans) -> None:
    """An inline handler's emit is below the user's spans around it."""
    further = Namespace().event("order.paid")

    @on(evt)
    def handler(sender: object) -> None:
        with spans.tracer.start_as_current_span("pay"):
            emit(further)

    with spans.tracer.start_as_current_span("request"):
        emit(evt)
    chain = [spans.only(name) for name in ("request", "emit order.placed", "pay", "emit order.paid")]
    assert all(is_child(below, above) for above, below in pairwise(chain))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_spans_of_a_handler_are_below_its_run(evt: Event, app: Celery, work: Work, spans: Spans, kind: str) -> None:
    """A span that the user opens in a handler is below its run, on the event loop too."""

    def sync(sender: object) -> None:
        with spans.tracer.start_as_current_span("send mail"):
            pass

    async def coroutine(sender: object) -> None:
        with spans.tracer.start_as_current_span("send mail"):
            await asyncio.sleep(0)

    functions: dict[str, Any] = {"sync": sync, "async": coroutine}
    on(evt, offload=True, name="shop.handler")(functions[kind])
    work(app).only(emit(evt))
    assert is_child(spans.only("send mail"), spans.only("run shop.handler"))


def test_runs_at_once_do_not_mix(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """Runs on two threads of a worker are each in the trace of their own emit."""
    both = threading.Barrier(2)

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: str) -> None:
        both.wait(PATIENCE)
        with spans.tracer.start_as_current_span(sender):
            both.wait(PATIENCE)

    emissions = {name: emit(evt, name) for name in ("ada", "grace")}
    worker = work(app, pool="threads", concurrency=2)
    for emission in emissions.values():
        worker.only(emission)
    emits = {str((span.attributes or {})["messaging.message.id"]): span for span in spans.named("emit order.placed", 2)}
    for name, emission in emissions.items():
        assert trace_of(spans.only(name)) == trace_of(emits[emission.id])


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
def test_it_is_the_same_trace_when_a_relay_publishes(
    evt: Event, app: Celery, work: Work, spans: Spans, delivery: str
) -> None:
    """A run of a message that a relay publishes is in the trace of its emit, and not in the relay's."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: None)
    with broker_away():
        emission = emit(evt)
        assert [entry.state for entry in outbox.deliveries()] == ["waiting"]
    with spans.tracer.start_as_current_span("relay"):
        relay(app)
    work(app).only(emission)
    assert is_child(spans.only("run shop.handler"), spans.only("emit order.placed"))
    assert trace_of(spans.only("relay")) != trace_of(spans.only("run shop.handler"))


def test_a_delivery_that_waits_for_its_time_is_in_its_trace(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """A delivery with a countdown, emitted in a transaction, is in the trace of its emit."""
    on(evt, offload={"countdown": SOON}, name="shop.handler")(lambda sender: None)
    with transaction():
        emission = emit(evt)
    work(app).only(emission)
    assert is_child(spans.only("run shop.handler"), spans.only("emit order.placed"))


def test_a_batch_of_a_relay_has_a_link_to_each_emit(evt: Event, app: Celery, sent: Sent, spans: Spans) -> None:
    """The span of a relay's batch is in no emit's trace, and links each emit once."""
    for name in ("shop.a", "shop.b"):
        on(evt, offload={"delivery": "at-least-once"}, name=name)(lambda sender: None)
    with broker_away():
        for _ in range(3):
            emit(evt)
    relay(app, 6)
    published = spans.only("publish")
    contexts = [span.get_span_context() for span in spans.named("emit order.placed", 3)]
    linked = [(link.context.trace_id, link.context.span_id) for link in published.links]
    assert linked == [(context.trace_id, context.span_id) for context in contexts]
    assert published.parent is None
    assert published.kind == SpanKind.PRODUCER
    assert dict(published.attributes or {}) == {
        "messaging.system": "nitro",
        "messaging.operation.type": "send",
        "messaging.batch.message_count": 6,
    }
    assert len(sent()) == 6


def test_a_batch_has_no_more_links_than_a_span_may_have(
    evt: Event, app: Celery, sent: Sent, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has at most the allowed number of links, and all of its messages leave."""
    monkeypatch.setattr(opentelemetry, "MAX_LINKS", 2)
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    with broker_away():
        for _ in range(3):
            emit(evt)
    relay(app, 3)
    assert len(spans.only("publish").links) == 2
    assert len(sent()) == 3


def test_what_nobody_traced_has_no_link(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """The run of a row without a trace begins a new trace, and its batch has no link."""
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    with broker_away(), no_instrumentation():
        emission = emit(evt)
    relay(app)
    work(app).only(emission)
    assert spans.only("publish").links == ()
    assert spans.only("run shop.handler").parent is None


def test_a_relay_without_anything_to_publish_leaves_no_span(evt: Event, app: Celery, spans: Spans) -> None:
    """A relay whose due deliveries have all expired leaves no span."""
    on(evt, offload={"countdown": SOON, "expires": SOON}, name="shop.handler")(lambda sender: None)
    emit(evt)
    outbox_relay = outbox.Relay(app)
    until(lambda: outbox_relay.step() == 0 and [entry.state for entry in outbox.deliveries()] == ["dead"])
    assert [span.name for span in spans.all] == ["emit order.placed"]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
def test_each_attempt_is_a_span(evt: Event, app: Celery, work: Work, spans: Spans, delivery: str) -> None:
    """Each attempt is a span below the emit; a failed one has an exception and the status ERROR."""
    runs: list[int] = []

    @on(evt, offload={"delivery": delivery, **AT_ONCE}, name="shop.handler")
    def handler(sender: object) -> str:
        runs.append(1)
        if len(runs) < 3:
            raise ConnectionError("no stock")
        return "done"

    assert work(app).only(emit(evt)) == "done"
    emit_span, run_spans = spans.only("emit order.placed"), spans.named("run shop.handler", 3)
    assert [is_child(span, emit_span) for span in run_spans] == [True] * 3
    assert [(span.attributes or {})["nitro.attempt"] for span in run_spans] == [1, 2, 3]
    assert [span.status.status_code for span in run_spans] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    assert [event.name for event in run_spans[0].events] == ["exception"]
    assert (run_spans[0].events[0].attributes or {})["exception.message"] == "no stock"
    assert emit_span.status.status_code == StatusCode.UNSET


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_run_that_fails_for_good_is_an_error(evt: Event, app: Celery, work: Work, spans: Spans, kind: str) -> None:
    """The span of the last failed attempt has the status ERROR."""

    def sync(sender: object) -> None:
        raise ValueError("no stock")

    async def coroutine(sender: object) -> None:
        raise ValueError("no stock")

    functions: dict[str, Any] = {"sync": sync, "async": coroutine}
    on(evt, offload={"max_retries": 0}, name="shop.handler")(functions[kind])
    assert work(app).state(emit(evt)) == "FAILURE"
    assert spans.only("run shop.handler").status.status_code == StatusCode.ERROR


def test_an_emit_that_raises_is_an_error(evt: Event, app: Celery, spans: Spans) -> None:
    """The span of an emit that raises has the status ERROR and the emission's id."""
    on(evt)(lambda sender: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        emit(evt)
    span = spans.only("emit order.placed")
    assert span.status.status_code == StatusCode.ERROR
    assert (span.attributes or {})["messaging.message.id"]
    assert (span.attributes or {})["nitro.queued"] == ()


def test_what_cannot_travel_is_an_error_of_the_emit(evt: Event, app: Celery, sent: Sent, spans: Spans) -> None:
    """A payload error gives the emit's span the status ERROR."""
    on(evt, offload=True, name="shop.handler")(lambda sender, **kwargs: None)
    with pytest.raises(PayloadError):
        emit(evt, what=object())
    assert spans.only("emit order.placed").status.status_code == StatusCode.ERROR
    assert sent() == []


def test_a_cancelled_emit_says_by_whom(evt: Event, app: Celery, sent: Sent, spans: Spans) -> None:
    """The span of a cancelled emit names the handler that cancelled it, and is no error."""
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    on(evt, name="shop.gate")(lambda sender: False)
    emit(evt)
    span = spans.only("emit order.placed")
    facts = span.attributes or {}
    assert (facts["nitro.cancelled_by"], facts["nitro.queued"]) == ("shop.gate", ())
    assert span.status.status_code == StatusCode.UNSET
    assert sent() == []


def test_an_emit_that_nobody_cancels_names_nobody(evt: Event, spans: Spans) -> None:
    """The span of an emit without cancellation has no attribute `nitro.cancelled_by`."""
    on(evt)(lambda sender: None)
    emit(evt)
    assert "nitro.cancelled_by" not in (spans.only("emit order.placed").attributes or {})


def test_emit_async_is_a_span_around_its_handlers(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """Concurrent `emit_async` calls have a trace each, with their inline handlers and their runs."""
    on(evt, offload=True, name="shop.offloaded")(lambda sender: None)

    @on(evt, name="shop.inline")
    async def inline(sender: str) -> None:
        with spans.tracer.start_as_current_span(sender):
            await asyncio.sleep(0)

    async def both() -> Any:
        return await asyncio.gather(emit_async(evt, "ada"), emit_async(evt, "grace"))

    emissions = asyncio.run(both())
    worker = work(app)
    for emission in emissions:
        worker.only(emission)
    emits = {str((span.attributes or {})["messaging.message.id"]): span for span in spans.named("emit order.placed", 2)}
    runs = {str((span.attributes or {})["messaging.message.id"]): span for span in spans.named("run shop.offloaded", 2)}
    for name, emission in zip(("ada", "grace"), emissions, strict=True):
        assert is_child(spans.only(name), emits[emission.id])
        assert is_child(runs[emission.id], emits[emission.id])
    assert len(spans.traces) == 2


@pytest.mark.parametrize("within", [nullcontext, transaction])
def test_an_async_handler_that_emit_starts_is_below_the_emit(
    evt: Event, app: Celery, spans: Spans, within: Any
) -> None:
    """An async handler that `emit` starts is below the emit, even if it starts after a commit."""

    @on(evt)
    async def handler(sender: object) -> None:
        with spans.tracer.start_as_current_span("send mail"):
            await asyncio.sleep(0)

    with within():
        emit(evt)
    assert drain(PATIENCE)
    assert is_child(spans.only("send mail"), spans.only("emit order.placed"))


def test_field_values_are_in_no_span(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """Spans contain class and id of sender and arguments, and no field values."""
    on(evt, offload={"countdown": SOON, "max_retries": 0}, name="shop.handler")(lambda sender, *args, **kwargs: 1 / 0)
    emission = emit(evt, Traced(id="o1", email="secret"), "secret", card="secret", other=Traced(email="secret"))
    work(app).only(emission)
    spans.only("run shop.handler")
    texts = [span.to_json() for span in spans.all]
    assert len(texts) == 3
    assert "Traced:o1" in "".join(texts)
    assert "secret" not in "".join(texts)


def test_a_class_may_show_fields(evt: Event, spans: Spans) -> None:
    """Fields in `__nitro_show__` are in the span."""
    on(evt)(lambda sender: None)
    emit(evt, TracedOpenly(id="o1", status="paid", email="secret"))
    assert (spans.only("emit order.placed").attributes or {})["nitro.sender"] == "TracedOpenly:o1 status='paid'"


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "through a relay"])
def test_baggage_travels_with_the_trace(evt: Event, app: Celery, work: Work, spans: Spans, is_late: bool) -> None:
    """Baggage of the emit is set in the handler and in its emits, and not afterwards."""
    further = Namespace().event("order.paid")
    values: list[Any] = []
    on(further, offload=True, name="shop.second")(lambda sender: values.append(baggage.get_baggage("shop")))

    @on(evt, offload={"countdown": SOON} if is_late else True, name="shop.first")
    def first(sender: object) -> None:
        values.append(baggage.get_baggage("shop"))
        emit(further)

    @app.task(name="shop.plain", shared=False)
    def plain() -> Any:
        return baggage.get_baggage("shop")

    token = attach(baggage.set_baggage("shop", "s1"))
    try:
        emission = emit(evt)
    finally:
        detach(token)
    worker = work(app)
    worker.only(emission)
    until(lambda: len(values) == 2)
    assert values == ["s1", "s1"]
    assert worker.of(plain.delay().id) is None


def test_a_handler_that_is_called_by_a_handler_is_below_its_run(
    evt: Event, app: Celery, work: Work, spans: Spans
) -> None:
    """A handler that another handler calls by `.task(…)` is below the caller's run."""
    inner = on(Namespace().event("other"), offload=True, name="shop.inner")(lambda sender: None)
    on(evt, offload=True, name="shop.outer")(lambda sender: inner.task(sender))
    work(app).only(emit(evt, "ada"))
    assert is_child(spans.only("run shop.inner"), spans.only("run shop.outer"))


def test_a_second_call_traces_nothing_twice(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """A second call of `instrument` has no effect."""
    opentelemetry.instrument(spans.provider)
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    work(app).only(emit(evt))
    assert is_child(spans.only("run shop.handler"), spans.only("emit order.placed"))


def test_what_is_not_sampled_stays_so(evt: Event, app: Celery, work: Work) -> None:
    """A worker that samples everything keeps the emitter's decision not to sample."""
    emitter, worker = Spans(sampler=ALWAYS_OFF), Spans()
    on(evt, offload=True, name="shop.handler")(lambda sender: "done")
    with no_instrumentation():
        opentelemetry.instrument(emitter.provider)
        emission = emit(evt)
    with no_instrumentation():
        opentelemetry.instrument(worker.provider)
        assert work(app).only(emission) == "done"
        assert (emitter.all, worker.all) == ((), ())


SHOP = """
    import json
    import os

    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    from nitro import emit, on
    from nitro.telemetry.opentelemetry import instrument


    def line(span):
        context, parent = span.get_span_context(), span.parent
        ids = {"trace": context.trace_id, "span": context.span_id, "parent": parent and parent.span_id}
        links = [link.context.span_id for link in span.links]
        return json.dumps({"name": span.name, "pid": os.getpid(), **ids, "links": links}) + "\\n"


    instrument()
    provider = TracerProvider()
    exporter = ConsoleSpanExporter(out=open(os.environ["SPANS"], "a"), formatter=line)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


    @on("order.placed", offload=True)
    def first(sender):
        emit("order.paid", sender)


    @on("order.paid", offload={"countdown": 0.1})
    async def second(sender):
        pass
"""


def test_one_trace_over_real_processes(tmp_path: Path, fresh_process: Callable[..., Any]) -> None:
    """Emitter, worker process and relay of the embedded broker share one trace through the global provider."""
    file = tmp_path / "spans"
    (tmp_path / "shop.py").write_text(dedent(SHOP), encoding="utf-8")
    environ = {"SPANS": str(file), "NITRO_HANDLERS": "shop"}
    emitter = fresh_process("import shop\nshop.emit('order.placed', 'ada')\n", **environ)
    assert emitter.returncode == 0, emitter.stderr

    def spans() -> dict[str, Any]:
        lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return {span["name"]: span for span in map(json.loads, lines)}

    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "1", "-l", "INFO"],
            cwd=tmp_path,
            env={**inherited, "PYTHONPATH": paths, **environ},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: worker.poll() is not None or {"run shop.second", "publish"} <= spans().keys(), within=60)
    finally:
        worker.terminate()
        try:
            worker.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    spans_by_name = spans()
    names = ["emit order.placed", "run shop.first", "emit order.paid", "run shop.second"]
    assert {*names, "publish"} == spans_by_name.keys(), (tmp_path / "worker.log").read_text()
    chain = [spans_by_name[name] for name in names]
    assert len({span["trace"] for span in chain}) == 1
    assert [span["parent"] for span in chain] == [None, *(span["span"] for span in chain[:-1])]
    assert spans_by_name["publish"]["trace"] != chain[0]["trace"]
    assert spans_by_name["publish"]["links"] == [spans_by_name["emit order.paid"]["span"]]
    assert len({spans_by_name[name]["pid"] for name in (*names[:2], "publish")}) == 3
