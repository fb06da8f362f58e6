"""Flower's settings for `celery -A tasks flower --basic-auth=USER:PASSWORD`, which reads this file where it is started.

What Flower shows of a side effect: its handler, `kwargs` with event, sender and emission, which the search finds by
`kwargs:event=order-placed`, its progress and its result. `/metrics` has a series for each handler, and the outbox.
"""

from prometheus_client import REGISTRY

from nitro.telemetry.prometheus import OutboxCollector

tasks_columns = "name,kwargs,state,result,received,started,runtime,retries,worker,uuid"
natural_time = True

REGISTRY.register(OutboxCollector())
