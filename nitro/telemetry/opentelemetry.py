"""OpenTelemetry: one trace from an emit through outbox, broker and worker to its handlers and their own emits.

Needs the extra `otel`. Spans and attributes follow the semantic conventions for messaging where they have a name.
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
"""Maximum number of links of a span: the default limit of the SDK."""


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """Starts the tracing of emits, of handlers in workers and of batches of relays.

    Spans: `emit EVENT` around an emit with its inline handlers; `run HANDLER` around each run in a worker, a child of
    the emit even if a relay has published it; `publish` around a batch of a relay, with a link to each emit.

    A second call for the same provider does nothing.

    Args:
        tracer_provider: the provider of the tracer; without it the global provider.
    """
    if any(
        isinstance(propagator, _EmissionTracer) and propagator.provider is tracer_provider for propagator in propagators
    ):
        return
    tracer = _EmissionTracer(tracer_provider)
    active_observers.add(tracer.observe)
    propagators.add(tracer)
    publish_contexts.add(tracer.publish)


class _EmissionTracer:
    """The observer of emits and propagator of their spans, for one provider."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self.provider = provider
        self._tracer = trace.get_tracer("nitro", tracer_provider=provider)

    @contextmanager
    def observe(self, emission: Emission, call: Call) -> Iterator[None]:
        """The span of an emit."""
        attributes: dict[str, AnyValue] = {"nitro.event": emission.event, "nitro.sender": describe_sender(call.sender)}
        with self._start_span(f"emit {emission.event}", SpanKind.PRODUCER, attributes) as span:
            try:
                yield
            finally:
                span.set_attribute("messaging.message.conversation_id", emission.root or emission.id)
                span.set_attribute("messaging.message.id", emission.id)
                span.set_attribute("nitro.queued", list(emission.offloaded))
                if emission.cancelled_by is not None:
                    span.set_attribute("nitro.cancelled_by", emission.cancelled_by)

    def inject(self, _emission: Emission) -> Headers:
        """Returns the headers that the global propagator writes for the current span."""
        headers: dict[str, str] = {}
        propagate.inject(headers)
        return headers

    @contextmanager
    def extract(self, headers: Headers, delivery: Delivery) -> Iterator[None]:
        """The span of a run of a handler, a child of the span of its emit."""
        attributes: dict[str, AnyValue] = {
            "messaging.operation.type": "process",
            "messaging.message.id": delivery.emission,
            "nitro.event": delivery.event or "",
            "nitro.handler": delivery.handler,
            "nitro.attempt": delivery.attempt,
        }
        carrier = {name: value for name, value in headers.items() if isinstance(value, str)}
        # context=: without headers, as in a handler that another handler calls, the parent is the current span.
        token = context.attach(propagate.extract(carrier, context=context.get_current()))
        try:
            with self._start_span(f"run {delivery.handler}", SpanKind.CONSUMER, attributes):
                yield
        finally:
            context.detach(token)

    @contextmanager
    def publish(self, messages: Sequence[TaskMessage]) -> Iterator[None]:
        """The span of a relay's batch; none for an empty batch."""
        emits = {(emit.trace_id, emit.span_id): emit for emit in map(_emit_span_context, messages) if emit.is_valid}
        links = [Link(emit) for emit in emits.values()][:MAX_LINKS]
        attributes: dict[str, AnyValue] = {
            "messaging.operation.type": "send",
            "messaging.batch.message_count": len(messages),
        }
        with self._start_span("publish", SpanKind.PRODUCER, attributes, links=links) if messages else nullcontext():
            yield

    def _start_span(
        self, name: str, kind: SpanKind, attributes: Mapping[str, AnyValue], **options: Any
    ) -> AbstractContextManager[trace.Span]:
        attributes = {"messaging.system": "nitro", **attributes}
        return self._tracer.start_as_current_span(name, kind=kind, attributes=attributes, **options)


def _emit_span_context(message: TaskMessage) -> SpanContext:
    """Returns the context of the span of a message's emit."""
    return trace.get_current_span(
        propagate.extract(message.propagated_headers, context=context.Context())
    ).get_span_context()
