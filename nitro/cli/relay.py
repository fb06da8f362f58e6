"""`nitro relay`: publishes waiting deliveries of the outbox, until a signal or until none is due."""

from __future__ import annotations

import signal
from queue import SimpleQueue
from typing import TYPE_CHECKING

import click

from nitro.cli import render
from nitro.cli.project import app_of, load_handlers

if TYPE_CHECKING:
    from celery import Celery


SignalQueue = SimpleQueue[int]

STOP_SECONDS = 5.0
"""Seconds that the current step of the relay has after a stop signal."""


@click.command("relay")
@click.option("--once", is_flag=True, help="Run until no delivery is due any more; fail if the broker is unreachable.")
@click.pass_context
def command(ctx: click.Context, once: bool) -> None:
    """Moves waiting deliveries to the broker.

    A running worker does that too. The command runs until SIGINT or SIGTERM, and retries while the broker is
    unreachable.

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
    """Publishes all due deliveries; returns their number.

    Raises:
        ClickException: the broker cannot be reached.
    """
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
    with render.progress_bar("moving", read_health().deliveries[WAITING]) as progress:
        while (count := relay.step()) or (publisher.is_ready and pending.has_due()):
            moved += count
            progress.update(count)
    if not publisher.is_ready:
        raise ConnectionError(f"it has taken {moved} deliveries, and the others wait as before")
    return moved


def stop_signals() -> SignalQueue:
    """Returns a queue that receives each SIGINT and SIGTERM from now on."""
    signals: SignalQueue = SimpleQueue()  # put() is re-entrant: a signal may interrupt the thread in its get()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: signals.put(received))
    return signals


def _relay_until_signal(app: Celery) -> None:
    import logging

    from nitro.infrastructure.outbox.relay import Relay
    from nitro.infrastructure.threads import PeriodicThread

    signals = stop_signals()
    app.log.setup(loglevel=logging.INFO)
    relay = PeriodicThread("nitro-relay")
    relay.start(Relay(app).tick)
    click.echo("relays until SIGINT or SIGTERM")
    signals.get()
    relay.stop(STOP_SECONDS)
