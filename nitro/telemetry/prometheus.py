"""Prometheus: metrics that Flower does not have, of emitters and of the outbox.

Needs the extra `prometheus`. Flower's `/metrics` serves the default registry; an outbox registered there is included.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.observers import active_observers
from nitro.infrastructure.events.ports import Call
from nitro.infrastructure.logs import get_logger

if TYPE_CHECKING:
    from nitro.infrastructure.outbox.health import DeliveryGroup

logger = get_logger("nitro.outbox")

BUCKET_SECONDS = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds of the histogram's buckets, in seconds."""


class OutboxCollector(Collector):
    """A collector that reads the outbox at each scrape. It does not count deliveries that are done.

    - `nitro_outbox_deliveries{state}`: waiting, queued, running, dead.
    - `nitro_outbox_oldest_waiting_seconds`: age of the oldest due delivery that waits; 0 if there is none.
    - `nitro_outbox_stuck{queue, handler}`: deliveries that are due, queued or running for longer than five minutes.
    - `nitro_outbox_up`: 0 if the database does not answer; the other metrics are missing then.
    """

    def describe(self) -> list[GaugeMetricFamily]:
        """Returns no metrics: without it, the registration would call `collect`, which reads the database."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the current metrics."""
        from nitro.infrastructure.outbox.health import read_health

        up = GaugeMetricFamily("nitro_outbox_up", "Whether the database of the outbox answers.")
        try:
            health = read_health()
        except Exception:
            logger.warning("the outbox cannot be measured", exc_info=True)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        deliveries = GaugeMetricFamily("nitro_outbox_deliveries", "Deliveries, by state.", labels=["state"])
        for state, count in health.deliveries.items():
            deliveries.add_metric([state], count)
        oldest = GaugeMetricFamily("nitro_outbox_oldest_waiting_seconds", "Since when the oldest that waits is due.")
        oldest.add_metric([], health.oldest_waiting_age or 0)
        yield from (up, deliveries, oldest, _stuck_metric(health.groups))


def _stuck_metric(groups: Iterable[DeliveryGroup]) -> GaugeMetricFamily:
    counts: Tally[tuple[str, str]] = Tally()
    for group in groups:
        counts[group.queue, group.handler] += group.stuck
    stuck = GaugeMetricFamily("nitro_outbox_stuck", "Due, queued or running for too long.", labels=["queue", "handler"])
    for labels, count in counts.items():
        stuck.add_metric(labels, count)
    return stuck


def instrument(registry: CollectorRegistry = REGISTRY) -> None:
    """Starts to count the emissions of this process.

    - `nitro_emissions_total{event}`, `nitro_cancellations_total{event, handler}`, `nitro_emit_errors_total{event}`.
    - `nitro_inline_seconds{event, handler}`: a histogram of the run times of inline handlers.

    A second call for the same registry does nothing.
    """
    owners = [getattr(observer, "__self__", None) for observer in active_observers]
    if not any(isinstance(owner, _EmissionCounter) and owner.registry is registry for owner in owners):
        active_observers.add(_EmissionCounter(registry).observe)


class _EmissionCounter:
    """The observer that counts emissions, for one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._emissions = Counter("nitro_emissions", "Emissions.", ["event"], registry=registry)
        self._errors = Counter("nitro_emit_errors", "Emissions that raised.", ["event"], registry=registry)
        self._cancelled = Counter(
            "nitro_cancellations", "Emissions that a handler has cancelled.", ["event", "handler"], registry=registry
        )
        self._inline = Histogram(
            "nitro_inline_seconds",
            "Time of inline handlers.",
            ["event", "handler"],
            registry=registry,
            buckets=BUCKET_SECONDS,
        )

    @contextmanager
    def observe(self, emission: Emission, _call: Call) -> Iterator[None]:
        """Counts an emission, its error and its cancellation, and measures its inline handlers."""
        self._emissions.labels(emission.event).inc()
        try:
            yield
        except BaseException:
            self._errors.labels(emission.event).inc()
            raise
        finally:
            if emission.cancelled_by is not None:
                self._cancelled.labels(emission.event, emission.cancelled_by).inc()
            for handler, (began, ended) in emission.timings.items():
                if ended is not None:
                    self._inline.labels(emission.event, handler).observe(ended - began)
