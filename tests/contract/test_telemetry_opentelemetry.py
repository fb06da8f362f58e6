"""OpenTelemetry: one trace from an emit to its handlers in workers and what they emit, whoever has published it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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

from brokers import broker_away
from nitro.domain.entities.base_entity import Entity
from nitro.errors import PayloadError
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, Namespace, drain, emit, emit_async, on
from nitro.infrastructure.events.observers import active_observers
from nitro.infrastructure.offload.propagation import propagators, publish_contexts
from nitro.infrastructure.outbox import operations
from nitro.infrastructure.outbox.relay import Relay
from nitro.telemetry import opentelemetry
from waiting import until

Sent = Callable[..., list[Any]]
Work = Callable[..., Any]
PROMISES = ("at-most-once", "broker", "at-least-once", "exactly-once")
AT_ONCE = {"retry_backoff": False, "default_retry_delay": 0}
SOON = 0.001
PATIENCE = 20.0


class Traced(Entity):
    """Nothing of it is shown but its class and id."""

    email: str = ""


class TracedOpenly(Entity):
    """It wants its status to be shown."""

    __nitro_show__: ClassVar[tuple[str, ...]] = ("status",)

    status: str = ""
    email: str = ""


class Spans:
    """The spans that have ended, and a provider that makes more."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("shop")

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        """In the order in which they have ended."""
        return self._exporter.get_finished_spans()

    def named(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """Those of a name, as soon as there are so many."""
        found = until(lambda: spans if len(spans := [span for span in self.all if span.name == name]) >= count else [])
        assert len(found) == count
        return found

    def only(self, name: str) -> ReadableSpan:
        """The only one of a name."""
        return self.named(name)[0]

    @property
    def traces(self) -> set[int]:
        """The ids of all traces."""
        return {trace_of(span) for span in self.all}


def trace_of(span: ReadableSpan) -> int:
    """The id of its trace."""
    return span.get_span_context().trace_id


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether a span is directly below another one in the same trace."""
    above, made = child.parent, parent.get_span_context()
    return above is not None and (above.trace_id, above.span_id) == (made.trace_id, made.span_id)


@contextmanager
def untraced() -> Iterator[None]:
    """As in a process that was not instrumented."""
    with active_observers.replaced(), propagators.replaced(), publish_contexts.replaced():
        yield


@pytest.fixture
def spans() -> Iterator[Spans]:
    """What this process traces; nothing before and after the test."""
    made = Spans()
    with untraced():
        opentelemetry.instrument(made.provider)
        yield made
    made.provider.shutdown()


def relay(app: Celery, count: int = 1) -> None:
    """Have so many deliveries leave."""
    mover, published = Relay(app), list[int]()
    until(lambda: published.append(mover.step()) or sum(published) >= count)


@pytest.mark.parametrize("delivery", PROMISES)
def test_a_run_is_below_its_emit(evt: Event, app: Celery, work: Work, spans: Spans, delivery: str) -> None:
    """Whatever its promise is: one trace, and the spans say what they are of."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: None)
    emission = emit(evt, Traced(id="o1"))
    work(app).only(emission)
    made, ran = spans.only("emit order.placed"), spans.only("run shop.handler")
    assert made.parent is None
    assert is_child(ran, made)
    assert (made.kind, ran.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(made.attributes or {}) == {
        "messaging.system": "nitro",
        "messaging.message.id": emission.id,
        "messaging.message.conversation_id": emission.id,
        "nitro.event": "order.placed",
        "nitro.sender": "Traced:o1",
        "nitro.queued": ("shop.handler",),
    }
    assert dict(ran.attributes or {}) == {
        "messaging.system": "nitro",
        "messaging.operation.type": "process",
        "messaging.message.id": emission.id,
        "nitro.event": "order.placed",
        "nitro.handler": "shop.handler",
        "nitro.attempt": 1,
    }


@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
def test_each_emission_has_its_own_trace(evt: Event, app: Celery, work: Work, spans: Spans, delivery: str) -> None:
    """Messages of one handler are made alike, but a trace belongs to one emission."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: None)
    emissions = [emit(evt) for _ in range(3)]
    worker = work(app)
    for emission in emissions:
        worker.only(emission)
    pairs = zip(spans.named("emit order.placed", 3), spans.named("run shop.handler", 3), strict=True)
    assert all(is_child(ran, made) for made, ran in pairs)
    assert len(spans.traces) == 3


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_handler_emits_is_below_its_run(
    evt: Event, app: Celery, work: Work, spans: Spans, delivery: str, kind: str
) -> None:
    """One trace over two emissions and their runs, each below what has caused it."""
    further = Namespace().event("order.paid")
    on(further, offload={"delivery": delivery}, name="shop.second")(lambda sender: None)

    def sync(sender: object) -> None:
        emit(further)

    async def coroutine(sender: object) -> None:
        await asyncio.sleep(0)
        await emit_async(further)

    chosen: dict[str, Any] = {"sync": sync, "async": coroutine}
    on(evt, offload={"delivery": delivery}, name="shop.first")(chosen[kind])
    emission = emit(evt)
    work(app)
    line = ["emit order.placed", "run shop.first", "emit order.paid", "run shop.second"]
    chain = [spans.only(name) for name in line]
    assert [is_child(below, above) for above, below in pairwise(chain)] == [True, True, True]
    assert len(spans.traces) == 1
    made = [span.attributes or {} for span in (chain[0], chain[2])]
    assert [facts["messaging.message.conversation_id"] for facts in made] == [emission.id, emission.id]


def test_an_inline_handlers_emit_is_below_its_emit(evt: Event, spans: Spans) -> None:
    """What happens in one process is in the trace as well, with the user's own spans above and in between."""
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
    """What the user traces in a worker, on its event loop too."""

    def sync(sender: object) -> None:
        with spans.tracer.start_as_current_span("send mail"):
            pass

    async def coroutine(sender: object) -> None:
        with spans.tracer.start_as_current_span("send mail"):
            await asyncio.sleep(0)

    chosen: dict[str, Any] = {"sync": sync, "async": coroutine}
    on(evt, offload=True, name="shop.handler")(chosen[kind])
    work(app).only(emit(evt))
    assert is_child(spans.only("send mail"), spans.only("run shop.handler"))


def test_runs_at_once_do_not_mix(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """Two threads of a worker, each in the trace of its own emit."""
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
    made = {str((span.attributes or {})["messaging.message.id"]): span for span in spans.named("emit order.placed", 2)}
    for name, emission in emissions.items():
        assert trace_of(spans.only(name)) == trace_of(made[emission.id])


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
def test_it_is_the_same_trace_when_a_relay_publishes(
    evt: Event, app: Celery, work: Work, spans: Spans, delivery: str
) -> None:
    """The broker was away; the row has kept where the emit was, and the relay's own trace is another one."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: None)
    with broker_away():
        emission = emit(evt)
        assert [entry.state for entry in operations.read_deliveries()] == ["waiting"]
    with spans.tracer.start_as_current_span("relay"):
        relay(app)
    work(app).only(emission)
    assert is_child(spans.only("run shop.handler"), spans.only("emit order.placed"))
    assert trace_of(spans.only("relay")) != trace_of(spans.only("run shop.handler"))


def test_a_delivery_that_waits_for_its_time_is_in_its_trace(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """A countdown, with an emission inside a transaction."""
    on(evt, offload={"countdown": SOON}, name="shop.handler")(lambda sender: None)
    with transaction():
        emission = emit(evt)
    work(app).only(emission)
    assert is_child(spans.only("run shop.handler"), spans.only("emit order.placed"))


def test_a_batch_of_a_relay_has_a_link_to_each_emit(evt: Event, app: Celery, sent: Sent, spans: Spans) -> None:
    """It is in no emit's trace, and names them all, each once however many handlers it has."""
    for name in ("shop.a", "shop.b"):
        on(evt, offload={"delivery": "at-least-once"}, name=name)(lambda sender: None)
    with broker_away():
        for _ in range(3):
            emit(evt)
    relay(app, 6)
    published = spans.only("publish")
    made = [span.get_span_context() for span in spans.named("emit order.placed", 3)]
    linked = [(link.context.trace_id, link.context.span_id) for link in published.links]
    assert linked == [(context.trace_id, context.span_id) for context in made]
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
    """All of them leave nevertheless."""
    monkeypatch.setattr(opentelemetry, "MAX_LINKS", 2)
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    with broker_away():
        for _ in range(3):
            emit(evt)
    relay(app, 3)
    assert len(spans.only("publish").links) == 2
    assert len(sent()) == 3


def test_what_nobody_traced_has_no_link(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """Rows of an emitter that is not instrumented leave too, and their runs begin a trace of their own."""
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    with broker_away(), untraced():
        emission = emit(evt)
    relay(app)
    work(app).only(emission)
    assert spans.only("publish").links == ()
    assert spans.only("run shop.handler").parent is None


def test_a_relay_without_anything_to_publish_leaves_no_span(evt: Event, app: Celery, spans: Spans) -> None:
    """All that was due has expired."""
    on(evt, offload={"countdown": SOON, "expires": SOON}, name="shop.handler")(lambda sender: None)
    emit(evt)
    mover = Relay(app)
    until(lambda: mover.step() == 0 and [entry.state for entry in operations.read_deliveries()] == ["dead"])
    assert [span.name for span in spans.all] == ["emit order.placed"]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
def test_each_attempt_is_a_span(evt: Event, app: Celery, work: Work, spans: Spans, delivery: str) -> None:
    """One that fails says so, with its exception; all are below the emit."""
    runs: list[int] = []

    @on(evt, offload={"delivery": delivery, **AT_ONCE}, name="shop.handler")
    def handler(sender: object) -> str:
        runs.append(1)
        if len(runs) < 3:
            raise ConnectionError("no stock")
        return "done"

    assert work(app).only(emit(evt)) == "done"
    made, ran = spans.only("emit order.placed"), spans.named("run shop.handler", 3)
    assert [is_child(span, made) for span in ran] == [True] * 3
    assert [(span.attributes or {})["nitro.attempt"] for span in ran] == [1, 2, 3]
    assert [span.status.status_code for span in ran] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    assert [event.name for event in ran[0].events] == ["exception"]
    assert (ran[0].events[0].attributes or {})["exception.message"] == "no stock"
    assert made.status.status_code == StatusCode.UNSET


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_run_that_fails_for_good_is_an_error(evt: Event, app: Celery, work: Work, spans: Spans, kind: str) -> None:
    """At the last attempt as at any other."""

    def sync(sender: object) -> None:
        raise ValueError("no stock")

    async def coroutine(sender: object) -> None:
        raise ValueError("no stock")

    chosen: dict[str, Any] = {"sync": sync, "async": coroutine}
    on(evt, offload={"max_retries": 0}, name="shop.handler")(chosen[kind])
    assert work(app).state(emit(evt)) == "FAILURE"
    assert spans.only("run shop.handler").status.status_code == StatusCode.ERROR


def test_an_emit_that_raises_is_an_error(evt: Event, app: Celery, spans: Spans) -> None:
    """Its span can be found by the emission's id like any other."""
    on(evt)(lambda sender: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        emit(evt)
    span = spans.only("emit order.placed")
    assert span.status.status_code == StatusCode.ERROR
    assert (span.attributes or {})["messaging.message.id"]
    assert (span.attributes or {})["nitro.queued"] == ()


def test_what_cannot_travel_is_an_error_of_the_emit(evt: Event, app: Celery, sent: Sent, spans: Spans) -> None:
    """What is wrong with a payload is seen in the trace of the emitter."""
    on(evt, offload=True, name="shop.handler")(lambda sender, **kwargs: None)
    with pytest.raises(PayloadError):
        emit(evt, what=object())
    assert spans.only("emit order.placed").status.status_code == StatusCode.ERROR
    assert sent() == []


def test_a_cancelled_emit_says_by_whom(evt: Event, app: Celery, sent: Sent, spans: Spans) -> None:
    """It is no error, and nothing was queued."""
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    on(evt, name="shop.gate")(lambda sender: False)
    emit(evt)
    span = spans.only("emit order.placed")
    facts = span.attributes or {}
    assert (facts["nitro.cancelled_by"], facts["nitro.queued"]) == ("shop.gate", ())
    assert span.status.status_code == StatusCode.UNSET
    assert sent() == []


def test_an_emit_that_nobody_cancels_names_nobody(evt: Event, spans: Spans) -> None:
    """The attribute is there only where somebody has."""
    on(evt)(lambda sender: None)
    emit(evt)
    assert "nitro.cancelled_by" not in (spans.only("emit order.placed").attributes or {})


def test_emit_async_is_a_span_around_its_handlers(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """Two at once on one loop have a trace each, from their inline handlers to the runs in the worker."""
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
    made = {str((span.attributes or {})["messaging.message.id"]): span for span in spans.named("emit order.placed", 2)}
    ran = {str((span.attributes or {})["messaging.message.id"]): span for span in spans.named("run shop.offloaded", 2)}
    for name, emission in zip(("ada", "grace"), emissions, strict=True):
        assert is_child(spans.only(name), made[emission.id])
        assert is_child(ran[emission.id], made[emission.id])
    assert len(spans.traces) == 2


@pytest.mark.parametrize("within", [nullcontext, transaction])
def test_an_async_handler_that_emit_starts_is_below_the_emit(
    evt: Event, app: Celery, spans: Spans, within: Any
) -> None:
    """Nobody waits for it, it may even begin after a commit, and yet it is in the trace."""

    @on(evt)
    async def handler(sender: object) -> None:
        with spans.tracer.start_as_current_span("send mail"):
            await asyncio.sleep(0)

    with within():
        emit(evt)
    assert drain(PATIENCE)
    assert is_child(spans.only("send mail"), spans.only("emit order.placed"))


def test_field_values_are_in_no_span(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """Of sender and arguments nothing is told but class and id, also when a relay publishes or the handler fails."""
    on(evt, offload={"countdown": SOON, "max_retries": 0}, name="shop.handler")(lambda sender, *args, **kwargs: 1 / 0)
    emission = emit(evt, Traced(id="o1", email="secret"), "secret", card="secret", other=Traced(email="secret"))
    work(app).only(emission)
    spans.only("run shop.handler")
    told = [span.to_json() for span in spans.all]
    assert len(told) == 3
    assert "Traced:o1" in "".join(told)
    assert "secret" not in "".join(told)


def test_a_class_may_show_fields(evt: Event, spans: Spans) -> None:
    """`__nitro_show__` opts in, field by field."""
    on(evt)(lambda sender: None)
    emit(evt, TracedOpenly(id="o1", status="paid", email="secret"))
    assert (spans.only("emit order.placed").attributes or {})["nitro.sender"] == "TracedOpenly:o1 status='paid'"


@pytest.mark.parametrize("late", [False, True], ids=["at once", "through a relay"])
def test_baggage_travels_with_the_trace(evt: Event, app: Celery, work: Work, spans: Spans, late: bool) -> None:
    """What the user has put there is there in the handler, and travels on; afterwards it is gone."""
    further = Namespace().event("order.paid")
    found: list[Any] = []
    on(further, offload=True, name="shop.second")(lambda sender: found.append(baggage.get_baggage("shop")))

    @on(evt, offload={"countdown": SOON} if late else True, name="shop.first")
    def first(sender: object) -> None:
        found.append(baggage.get_baggage("shop"))
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
    until(lambda: len(found) == 2)
    assert found == ["s1", "s1"]
    assert worker.of(plain.delay().id) is None


def test_a_handler_that_is_called_by_a_handler_is_below_its_run(
    evt: Event, app: Celery, work: Work, spans: Spans
) -> None:
    """`.task(…)` runs it here and now: it is part of what its caller does."""
    inner = on(Namespace().event("other"), offload=True, name="shop.inner")(lambda sender: None)
    on(evt, offload=True, name="shop.outer")(lambda sender: inner.task(sender))
    work(app).only(emit(evt, "ada"))
    assert is_child(spans.only("run shop.inner"), spans.only("run shop.outer"))


def test_a_second_call_traces_nothing_twice(evt: Event, app: Celery, work: Work, spans: Spans) -> None:
    """A module that is imported by two ways may call it twice."""
    opentelemetry.instrument(spans.provider)
    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    work(app).only(emit(evt))
    assert is_child(spans.only("run shop.handler"), spans.only("emit order.placed"))


def test_what_is_not_sampled_stays_so(evt: Event, app: Celery, work: Work) -> None:
    """The decision is made once, at the begin of a trace, and travels; a worker that samples all keeps to it."""
    emitter, worker = Spans(sampler=ALWAYS_OFF), Spans()
    on(evt, offload=True, name="shop.handler")(lambda sender: "done")
    with untraced():
        opentelemetry.instrument(emitter.provider)
        emission = emit(evt)
    with untraced():
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
        made, above = span.get_span_context(), span.parent
        ids = {"trace": made.trace_id, "span": made.span_id, "parent": above and above.span_id}
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
    """An emitter, a worker's child and the relay beside it, with the embedded broker and the global provider."""
    file = tmp_path / "spans"
    (tmp_path / "shop.py").write_text(dedent(SHOP), encoding="utf-8")
    environ = {"SPANS": str(file), "NITRO_HANDLERS": "shop"}
    emitter = fresh_process("import shop\nshop.emit('order.placed', 'ada')\n", **environ)
    assert emitter.returncode == 0, emitter.stderr

    def spans() -> dict[str, Any]:
        lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return {span["name"]: span for span in map(json.loads, lines)}

    kept = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "1", "-l", "INFO"],
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": paths, **environ},
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
    found = spans()
    line = ["emit order.placed", "run shop.first", "emit order.paid", "run shop.second"]
    assert {*line, "publish"} == found.keys(), (tmp_path / "worker.log").read_text()
    chain = [found[name] for name in line]
    assert len({span["trace"] for span in chain}) == 1
    assert [span["parent"] for span in chain] == [None, *(span["span"] for span in chain[:-1])]
    assert found["publish"]["trace"] != chain[0]["trace"]
    assert found["publish"]["links"] == [found["emit order.paid"]["span"]]
    assert len({found[name]["pid"] for name in (*line[:2], "publish")}) == 3
