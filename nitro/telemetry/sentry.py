"""Sentry: a handler in a worker continues the trace of the emit, also where a relay has published it.

Needs the extra `sentry`, and Sentry's own `CeleryIntegration` in workers, which reads what is sent along here.
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
"""Of a message until it is published: where the emit was in its trace."""


def instrument() -> None:
    """Have every emission from now on send the trace along that Sentry is in; called again it does nothing."""
    if any(isinstance(propagator, _SentryPropagator) for propagator in propagators):
        return
    propagators.add(_SentryPropagator())
    before_task_publish.connect(_set_sentry_headers, weak=False)


class _SentryPropagator:
    def inject(self, _emission: Emission) -> Headers:
        """Where the emit is in its trace."""
        traced = {"sentry-trace": sentry_sdk.get_traceparent(), "baggage": sentry_sdk.get_baggage()}
        known = {name: value for name, value in traced.items() if value}
        return {TRACE_HEADER: known} if known else {}

    def extract(self, _headers: Headers, _delivery: Delivery) -> AbstractContextManager[object]:
        """Nothing: the integration does."""
        return nullcontext()


def _set_sentry_headers(headers: dict[str, Any], **_signal: object) -> None:
    """Put it where Sentry's integration looks: among the headers, and in the header `headers` with all others.

    Only now, when the integration has written there where the thread is that publishes: a courier's or a relay's is in
    the trace of whatever has started it.
    """
    traced = headers.pop(TRACE_HEADER, None)
    if not traced:
        return
    headers.update(traced, baggage=_merge_baggage(traced.get("baggage"), headers.get("baggage")))
    within = headers.pop("headers", None) or {}
    others = Context(headers).headers or {}
    headers["headers"] = {name: value for name, value in {**within, **others}.items() if name != TRACE_HEADER}


def _merge_baggage(sentrys: str | None, known: str | None) -> str:
    """The baggage of Sentry, with what others have put there."""
    others = [item for item in (known or "").split(",") if item.strip() and not item.strip().startswith("sentry-")]
    return ",".join([*([sentrys] if sentrys else []), *others])
