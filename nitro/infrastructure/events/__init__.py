"""Events of a process: declared, handled and emitted. The import loads neither celery nor sqlmodel."""

from blinker import ANY

from nitro.infrastructure.events.api import drain, drain_async, emit, emit_async, event, filter_signals, on
from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.events import Event, Namespace, default_namespace

__all__ = [
    "ANY",
    "Emission",
    "Event",
    "Namespace",
    "default_namespace",
    "drain",
    "drain_async",
    "emit",
    "emit_async",
    "event",
    "filter_signals",
    "on",
]
