"""`nitro relay`: moves what waits in the outbox to the broker, until it is told to stop or until nothing is due."""

from __future__ import annotations

import signal
from queue import SimpleQueue
from typing import TYPE_CHECKING

import click

from nitro.cli import render
from nitro.cli.project import app_of, load_handlers

if TYPE_CHECKING:
    from celery import Celery


STOP_SECONDS = 5.0
"""Seconds for the step that it is in when it is told to stop."""


@click.command("relay")
@click.option("--once", is_flag=True, help="Until nothing is due any more; fails if the broker is away.")
@click.pass_context
def command(ctx: click.Context, once: bool) -> None:
    """Move waiting deliveries to the broker.

    A running worker does that too. This runs until SIGINT or SIGTERM, and waits for a broker that is away.

    \b
    Example: celery -A tasks nitro relay --once
    """
    from nitro.infrastructure.offload.app import queueing_app
    from nitro.infrastructure.outbox.versions import ensure_current

    load_handlers()
    ensure_current()
    app = queueing_app(app_of(ctx))
    if once:
        click.echo(f"moved to the broker: {_publish_due(app)}")
    else:
        _relay_until_signal(app)


def _publish_due(app: Celery) -> int:
    """Publish all that is due; how many deliveries."""
    from nitro.infrastructure.offload.publishing.connection import BrokerConnection

    connection = BrokerConnection(app)
    try:
        connection.ensure_connected()
        return _step_until_idle(app)
    except Exception as error:
        if not connection.is_connection_error(error):
            raise
        raise click.ClickException(f"the broker is away: {' '.join(str(error).split())}") from error
    finally:
        connection.close()


def _step_until_idle(app: Celery) -> int:
    from nitro.infrastructure.offload.publishing.publisher import publisher
    from nitro.infrastructure.outbox import pending
    from nitro.infrastructure.outbox.health import read_health
    from nitro.infrastructure.outbox.relay import Relay
    from nitro.infrastructure.outbox.schema import WAITING

    relay, moved = Relay(app), 0
    with render.progress_bar("moving", read_health().deliveries[WAITING]) as bar:
        while (some := relay.step()) or (publisher.is_ready and pending.has_due()):
            moved += some
            bar.update(some)
    if not publisher.is_ready:
        raise ConnectionError(f"it has taken {moved} deliveries, and the others wait as before")
    return moved


def _relay_until_signal(app: Celery) -> None:
    import logging

    from nitro.infrastructure.outbox.relay import Relay
    from nitro.infrastructure.threads import PeriodicThread

    told = stop_signals()
    app.log.setup(loglevel=logging.INFO)
    relay = PeriodicThread("nitro-relay")
    relay.start(Relay(app).tick)
    click.echo("relays until SIGINT or SIGTERM")
    told.get()
    relay.stop(STOP_SECONDS)


SignalQueue = SimpleQueue[int]


def stop_signals() -> SignalQueue:
    """SIGINT and SIGTERM as they come, from now on."""
    told: SignalQueue = SimpleQueue()  # unlike an Event's set(), its put() may interrupt the thread that waits
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: told.put(received))
    return told
