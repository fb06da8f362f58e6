"""OpenTelemetry: one trace from an emit through outbox, broker and worker to its handlers and what they emit.

Needs the extra `otel`. Spans and attributes follow the semantic conventions for messaging where they have a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, SpanContext, SpanKind, TracerProvider
from opentelemetry.util.types import AnyValue

from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.display import describe_sender
from nitro.infrastructure.events.observers import active_observers
from nitro.infrastructure.events.ports import Call
from nitro.infrastructure.offload.delivery import Delivery
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.propagation import Headers, propagators, publish_contexts

MAX_LINKS = 128
"""Of a span, which is the default limit of the SDK."""


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """Have emits, handlers in workers and batches of relays traced, from now on, by this or the global provider.

    Spans: `emit EVENT` around an emit with its inline handlers; `run HANDLER` around each run in a worker, a child of
    the emit whenever and by whomever it was published; `publish` around a batch of a relay, with a link to each emit.

    Called again for the same provider it does nothing.
    """
    if any(
        isinstance(propagator, _EmissionTracer) and propagator.provider is tracer_provider for propagator in propagators
    ):
        return
    tracing = _EmissionTracer(tracer_provider)
    active_observers.add(tracing.watch)
    propagators.add(tracing)
    publish_contexts.add(tracing.publish)


class _EmissionTracer:
    def __init__(self, provider: TracerProvider | None) -> None:
        self.provider = provider
        self._tracer = trace.get_tracer("nitro", tracer_provider=provider)

    @contextmanager
    def watch(self, emission: Emission, call: Call) -> Iterator[None]:
        """The span of an emit."""
        facts: dict[str, AnyValue] = {"nitro.event": emission.event, "nitro.sender": describe_sender(call.sender)}
        with self._start_span(f"emit {emission.event}", SpanKind.PRODUCER, facts) as span:
            try:
                yield
            finally:
                span.set_attribute("messaging.message.conversation_id", emission.root or emission.id)
                span.set_attribute("messaging.message.id", emission.id)
                span.set_attribute("nitro.queued", list(emission.offloaded))
                if emission.cancelled_by is not None:
                    span.set_attribute("nitro.cancelled_by", emission.cancelled_by)

    def inject(self, _emission: Emission) -> Headers:
        """The context of the emit, as the global propagator writes it."""
        headers: dict[str, str] = {}
        propagate.inject(headers)
        return headers

    @contextmanager
    def extract(self, headers: Headers, delivery: Delivery) -> Iterator[None]:
        """The span of a run."""
        facts: dict[str, AnyValue] = {
            "messaging.operation.type": "process",
            "messaging.message.id": delivery.emission,
            "nitro.event": delivery.event or "",
            "nitro.handler": delivery.handler,
            "nitro.attempt": delivery.attempt,
        }
        sent = {name: value for name, value in headers.items() if isinstance(value, str)}
        # One that nothing was sent along with, such as a handler that a handler calls, is where it is called.
        token = context.attach(propagate.extract(sent, context=context.get_current()))
        try:
            with self._start_span(f"run {delivery.handler}", SpanKind.CONSUMER, facts):
                yield
        finally:
            context.detach(token)

    @contextmanager
    def publish(self, messages: Sequence[TaskMessage]) -> Iterator[None]:
        """The span of a relay's batch."""
        made = {(emit.trace_id, emit.span_id): emit for emit in map(_emit_span_context, messages) if emit.is_valid}
        links = [Link(emit) for emit in made.values()][:MAX_LINKS]
        facts: dict[str, AnyValue] = {
            "messaging.operation.type": "send",
            "messaging.batch.message_count": len(messages),
        }
        with self._start_span("publish", SpanKind.PRODUCER, facts, links=links) if messages else nullcontext():
            yield

    def _start_span(
        self, name: str, kind: SpanKind, facts: Mapping[str, AnyValue], **more: Any
    ) -> AbstractContextManager[trace.Span]:
        attributes = {"messaging.system": "nitro", **facts}
        return self._tracer.start_as_current_span(name, kind=kind, attributes=attributes, **more)


def _emit_span_context(message: TaskMessage) -> SpanContext:
    """The span of its emit."""
    return trace.get_current_span(
        propagate.extract(message.propagated_headers, context=context.Context())
    ).get_span_context()
