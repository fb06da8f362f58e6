"""A queued handler beside a job of other libraries."""

from __future__ import annotations

from functools import partial

from redis import Redis

from benchmarks.measure import Pair, looped, side_by_side
from benchmarks.peers import PEERS
from benchmarks.rows.publishing import app_on, empty_queue
from benchmarks.servers import REDIS
from benchmarks.shop import KWARGS, dump, handlers, order
from benchmarks.table import row
from nitro.infrastructure.events import Event, emit, on

HANDLERS = 5


def _against(name: str) -> Pair:
    """One of five handlers beside one job."""
    app, event, sold = app_on("redis"), Event("bench"), order()
    for handler in handlers(HANDLERS):
        on(event, offload={"delivery": "broker"}, name=f"bench.{handler.__name__}")(handler)
    theirs = PEERS[name](dump(sold))
    all_five = looped(lambda: emit(event, sold, **KWARGS))
    with empty_queue(app):
        try:
            return side_by_side(lambda times: all_five(times) / HANDLERS, theirs, times=200)
        finally:
            Redis.from_url(REDIS).flushdb()


for _name in PEERS:
    row(f"rival-{_name}", 8, "a queued handler of five, Redis", "a job", _name, 1.0, needs=("redis",))(
        partial(_against, _name)
    )
