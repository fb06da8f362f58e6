"""Sentry: a handler in a worker continues the trace of the emit, also where a relay has published it.

Needs the extra `sentry`, and Sentry's own `CeleryIntegration` in workers, which reads what is sent along here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import sentry_sdk

from nitro.infrastructure.events import Emission
from nitro.infrastructure.offload.carriers import Headers, carriers
from nitro.infrastructure.offload.delivery import Delivery


def instrument() -> None:
    """Have every emission from now on send the trace along that Sentry is in."""
    carriers.append(_Trace())


class _Trace:
    def give(self, _emission: Emission) -> Headers:
        """Where Sentry's integration looks for them: among the headers, and in the header `headers`."""
        traced = {"sentry-trace": sentry_sdk.get_traceparent(), "baggage": sentry_sdk.get_baggage()}
        known = {name: value for name, value in traced.items() if value}
        return {**known, "headers": known} if known else {}

    def take(self, _headers: Headers, _delivery: Delivery) -> AbstractContextManager[object]:
        """Nothing: the integration does."""
        return nullcontext()
