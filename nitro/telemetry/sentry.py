"""Sentry: a handler in a worker continues the trace of its emit, also if a relay has published the message.

Needs the extra `sentry`, and Sentry's own `CeleryIntegration` in workers, which reads the headers that are set here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import sentry_sdk
from celery.app.task import Context
from celery.signals import before_task_publish

from nitro.infrastructure.events import Emission
from nitro.infrastructure.offload.delivery import Delivery
from nitro.infrastructure.offload.propagation import Headers, propagators

TRACE_HEADER = "nitro_sentry"
"""Header of a message until it is published: the trace headers of the emit."""


def instrument() -> None:
    """Starts to send Sentry's current trace with every emission. A second call does nothing."""
    if any(isinstance(propagator, _SentryPropagator) for propagator in propagators):
        return
    propagators.add(_SentryPropagator())
    before_task_publish.connect(_set_sentry_headers, weak=False)


class _SentryPropagator:
    """The propagator of Sentry's trace headers."""

    def inject(self, _emission: Emission) -> Headers:
        """Returns the trace headers of the current span, under a header of their own."""
        trace_headers = {"sentry-trace": sentry_sdk.get_traceparent(), "baggage": sentry_sdk.get_baggage()}
        headers = {name: value for name, value in trace_headers.items() if value}
        return {TRACE_HEADER: headers} if headers else {}

    def extract(self, _headers: Headers, _delivery: Delivery) -> AbstractContextManager[object]:
        """Returns an empty context: Sentry's integration continues the trace."""
        return nullcontext()


def _set_sentry_headers(headers: dict[str, Any], **_signal: object) -> None:
    """Writes the trace headers of the emit to the two places that Sentry's integration reads.

    They are the message headers, and the dict in the header `headers`, which must hold all other headers too.

    It runs in `before_task_publish`: by then the integration has written the trace of the publishing thread, which must
    be overwritten. A publisher thread or a relay has a trace of its own.
    """
    trace_headers = headers.pop(TRACE_HEADER, None)
    if not trace_headers:
        return
    headers.update(trace_headers, baggage=_merge_baggage(trace_headers.get("baggage"), headers.get("baggage")))
    inner_headers = headers.pop("headers", None) or {}
    custom_headers = Context(headers).headers or {}
    headers["headers"] = {
        name: value for name, value in {**inner_headers, **custom_headers}.items() if name != TRACE_HEADER
    }


def _merge_baggage(emit_baggage: str | None, current_baggage: str | None) -> str:
    """Returns Sentry's baggage of the emit with the baggage items of other tools."""
    others = [
        item for item in (current_baggage or "").split(",") if item.strip() and not item.strip().startswith("sentry-")
    ]
    return ",".join([*([emit_baggage] if emit_baggage else []), *others])
