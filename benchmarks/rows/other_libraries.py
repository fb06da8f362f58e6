"""A queued handler beside a job of other libraries."""

from __future__ import annotations

from functools import partial

from redis import Redis

from benchmarks.measure import Pair, repeat, side_by_side
from benchmarks.other_libraries import LIBRARIES
from benchmarks.rows.publishing import app_on, empty_queue
from benchmarks.servers import REDIS
from benchmarks.shop import KWARGS, dump, handlers, order
from benchmarks.table import register_row
from nitro.infrastructure.events import Event, emit, on

HANDLERS = 5


def _against_library(name: str) -> Pair:
    """Measures one of five handlers beside one job."""
    app, event, sender = app_on("redis"), Event("bench"), order()
    for handler in handlers(HANDLERS):
        on(event, offload={"delivery": "broker"}, name=f"bench.{handler.__name__}")(handler)
    theirs = LIBRARIES[name](dump(sender))
    emit_to_all = repeat(lambda: emit(event, sender, **KWARGS))
    with empty_queue(app):
        try:
            return side_by_side(lambda times: emit_to_all(times) / HANDLERS, theirs, times=200)
        finally:
            Redis.from_url(REDIS).flushdb()


for _name in LIBRARIES:
    register_row(f"rival-{_name}", 8, "a queued handler of five, Redis", "a job", _name, 1.0, needs=("redis",))(
        partial(_against_library, _name)
    )
