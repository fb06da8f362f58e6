"""`nitro relay`: moves what waits in the outbox to the broker, until it is told to stop or until nothing is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nitro.cli import listing
from nitro.cli.project import app_of, load
from nitro.cli.stopping import signals

if TYPE_CHECKING:
    from celery import Celery

LEAVE = 5.0
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
    from nitro.infrastructure.offload.app import queueing
    from nitro.infrastructure.outbox.versions import ensure_current

    load()
    ensure_current()
    app = queueing(app_of(ctx))
    if once:
        click.echo(f"moved to the broker: {_move_what_is_due(app)}")
    else:
        _relay_until_told(app)


def _move_what_is_due(app: Celery) -> int:
    """Publish all that is due; how many deliveries."""
    from nitro.infrastructure.offload.line import Line

    line = Line(app)
    try:
        line.check()
        return _publish_all(app)
    except Exception as error:
        if not line.is_broken_by(error):
            raise
        raise click.ClickException(f"the broker is away: {' '.join(str(error).split())}") from error
    finally:
        line.close()


def _publish_all(app: Celery) -> int:
    from nitro.infrastructure.offload.courier import courier
    from nitro.infrastructure.outbox import backlog
    from nitro.infrastructure.outbox.health import health
    from nitro.infrastructure.outbox.relay import Relay
    from nitro.infrastructure.outbox.tables import WAITING

    relay, moved = Relay(app), 0
    with listing.progress("moving", health().deliveries[WAITING]) as bar:
        while (some := relay.step()) or (courier.ready and backlog.due()):
            moved += some
            bar.update(some)
    if not courier.ready:
        raise ConnectionError(f"it has taken {moved} deliveries, and the others wait as before")
    return moved


def _relay_until_told(app: Celery) -> None:
    import logging

    from nitro.infrastructure.outbox.relay import Relay
    from nitro.infrastructure.threads import PeriodicThread

    told = signals()
    app.log.setup(loglevel=logging.INFO)
    relay = PeriodicThread("nitro-relay")
    relay.start(Relay(app).tick)
    click.echo("relays until SIGINT or SIGTERM")
    told.get()
    relay.stop(LEAVE)
