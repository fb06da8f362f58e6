"""Haste: CHAOS_HASTE shortens the library's long waits, so that a test does not take minutes."""

from __future__ import annotations

import os
import sys

from nitro.infrastructure.outbox import heartbeat, pending, relay, rows
from nitro.infrastructure.worker import supervisor

LEASE = 2.0
DEAD_AFTER = 5.0
BEAT = 1.0
LOOK_AFTER = 0.5
LOST_WAIT = 0.5


def hurry() -> None:
    """Shortens the leases of messages and the time-outs of heartbeats, if CHAOS_HASTE is set."""
    if not os.environ.get("CHAOS_HASTE"):
        return
    rows.LEASE_SECONDS = pending.LEASE_SECONDS = LEASE
    relay.MAINTENANCE_INTERVAL_SECONDS = LOOK_AFTER
    supervisor.HEARTBEAT_SECONDS = BEAT
    if "tasks" in sys.modules:  # a worker; Celery waits so long for the result of a child that has died
        sys.modules["tasks"].app.conf.worker_lost_wait = LOST_WAIT
    heartbeat.HeartbeatMonitor.__init__.__defaults__ = (DEAD_AFTER,)
