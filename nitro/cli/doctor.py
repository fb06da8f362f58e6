"""`nitro doctor`: checks of everything that a delivery needs, and of settings that endanger a promise."""

from __future__ import annotations

import json as json_
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import click

from nitro.cli import render, worker_checks
from nitro.cli.project import app_of, load_handlers
from nitro.cli.times import Age
from nitro.cli.worker_checks import Finding, fine, warning, wrong
from nitro.invocation import celery_command

if TYPE_CHECKING:
    from celery import Celery

    from nitro.infrastructure.outbox.health import Health
    from nitro.infrastructure.worker.knowledge import WorkerInfo

HEADINGS = ("", "CHECK", "FOUND")


@dataclass(slots=True)
class CheckContext:
    """Results of earlier checks that later checks need.

    Attributes:
        max_age: seconds after which a delivery is stuck.
        health: the health of the outbox; None if the database cannot be read.
        broker_error: the reason for which the broker cannot be reached; None if it can.
        workers: the workers that answer.
        silent_workers: names of workers that send heartbeats and do not answer.
    """

    app: Celery
    max_age: float
    health: Health | None = None
    broker_error: str | None = None
    workers: Sequence[WorkerInfo] = ()
    silent_workers: Sequence[str] = ()


@click.command("doctor")
@click.option(
    "--max-age", type=Age(), default="5m", show_default=True, help="Age after which a due or running delivery is stuck."
)
@click.option("--json", "json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_context
def command(ctx: click.Context, max_age: timedelta, json: bool) -> None:
    """Checks broker, database, tables, workers, settings and stuck deliveries; exits with 1 if something is wrong.

    \b
    Example: celery -A tasks nitro doctor --max-age 15m
    """
    context = CheckContext(app_of(ctx), max_age.total_seconds())
    findings = [finding for check in CHECKS for finding in _run_check(check, context)]
    if json:
        click.echo(json_.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        click.echo(render.table(HEADINGS, ((finding.verdict, finding.check, finding.found) for finding in findings)))
    ctx.exit(int(any(finding.verdict == "wrong" for finding in findings)))


def _run_check(check: Check, context: CheckContext) -> Iterator[Finding]:
    """Yields the findings of a check. A check that raises is a finding with the verdict `wrong`."""
    try:
        yield from check(context)
    except Exception as error:  # noqa: BLE001  # the error is the finding
        yield wrong(check.__name__.strip("_"), f"{type(error).__name__}: {error}")


def _handlers(_context: CheckContext) -> Iterator[Finding]:
    try:
        load_handlers()
    except click.ClickException as error:
        yield wrong("handlers", error.message)
    else:
        yield from worker_checks.check_declared_handlers()


def _database(context: CheckContext) -> Iterator[Finding]:
    from sqlalchemy.exc import SQLAlchemyError

    from nitro.errors import OutboxOutdated
    from nitro.infrastructure.database import engine
    from nitro.infrastructure.outbox.health import read_health
    from nitro.infrastructure.outbox.versions import ensure_current

    url = engine().url.render_as_string()
    try:
        with engine().connect():
            yield fine("database", url)
        ensure_current()
        yield fine("tables", "of this version")
        context.health = read_health(context.max_age)
    except OutboxOutdated as error:
        yield wrong("tables", str(error))
    except SQLAlchemyError as error:
        yield wrong("database", f"{url}: {getattr(error, 'orig', None) or error}")
    else:
        dead = context.health.deliveries["dead"]
        dead_letters = f"{render.delivery_count(dead)}; see: {celery_command('nitro outbox list --state dead')}"
        yield warning("dead letters", dead_letters) if dead else fine("dead letters", "none")


def _broker(context: CheckContext) -> Iterator[Finding]:
    from nitro.infrastructure.offload.broker import is_embedded
    from nitro.infrastructure.offload.publishing.connection import BrokerConnection
    from nitro.settings import Settings

    app = context.app
    connection = BrokerConnection(app)
    url = f"embedded, in {Settings.load().home}" if is_embedded(app) else app.connection_for_write().as_uri()
    try:
        connection.ensure_connected()
    except Exception as error:  # noqa: BLE001  # transports raise errors of any class
        context.broker_error = str(error) or type(error).__name__
        yield wrong("broker", f"{url}: {context.broker_error}")
    else:
        yield fine("broker", url)
    finally:
        connection.close()


def _workers(context: CheckContext) -> Iterator[Finding]:
    from nitro.infrastructure.outbox.heartbeat import read_heartbeats
    from nitro.infrastructure.worker.knowledge import inspect_workers, without_foreign_relays

    if context.broker_error is None:
        beats_before, asked_at = {} if context.health is None else read_heartbeats(), monotonic()
        workers = inspect_workers(context.app, worker_checks.ANSWER_SECONDS)
        context.workers = workers if context.health is None else without_foreign_relays(read_heartbeats(), workers)
        context.silent_workers = worker_checks.silent_workers(beats_before, workers, asked_at)
        yield from worker_checks.check_workers(context.app, context.workers, context.silent_workers)


def _stuck(context: CheckContext) -> Iterator[Finding]:
    if context.health is not None:
        yield from worker_checks.check_stuck(
            context.health, context.workers, context.silent_workers, context.broker_error
        )


def _tracking(context: CheckContext) -> Iterator[Finding]:
    from nitro.infrastructure.offload.declarations import declarations_by_name
    from nitro.infrastructure.offload.envelope import TRACKED_DELIVERIES
    from nitro.infrastructure.outbox.writer import has_shared_database

    tracked = [
        name for name, declaration in declarations_by_name.items() if declaration.offload.delivery in TRACKED_DELIVERIES
    ]
    if tracked and not has_shared_database(context.app):
        yield wrong("outbox", "the broker is a server and no database is set that workers share; set NITRO_DB_URL")


def _settings(context: CheckContext) -> Iterator[Finding]:
    """Yields warnings about settings of the user's app under which a promise does not hold."""
    from nitro.infrastructure.offload.broker import REDIS, driver_of, is_embedded
    from nitro.infrastructure.signing import is_signing

    app, conf = context.app, context.app.conf
    if not is_embedded(app) and not is_signing():
        yield warning("settings", "messages are not signed: anyone who reaches the broker can run handlers")
    if conf.task_always_eager:
        yield warning("settings", "task_always_eager: handlers run in the emitter, and nothing is tracked")
    limit, visibility_timeout = conf.task_time_limit or 0, conf.broker_transport_options.get("visibility_timeout", 3600)
    if driver_of(app) == REDIS and limit > visibility_timeout:
        cause = f"visibility_timeout={visibility_timeout} is shorter than task_time_limit={limit}"
        yield warning("settings", f"{cause}: Redis delivers a message again while its handler still runs")


def _worker_settings(context: CheckContext) -> Iterator[Finding]:
    """Yields findings about worker-wide settings that delay or refuse deliveries; `bind` leaves them as they are."""
    from nitro.infrastructure.offload.broker import REDIS, driver_of, is_embedded
    from nitro.infrastructure.offload.conf import accepts_json

    app, conf = context.app, context.app.conf
    if not accepts_json(app):
        accepted = ", ".join(map(str, conf.accept_content))
        yield wrong("settings", f"accept_content is {accepted}: workers refuse the messages of handlers; add json")
    if is_embedded(app):
        return
    if conf.worker_prefetch_multiplier != 1:
        cause = f"worker_prefetch_multiplier={conf.worker_prefetch_multiplier}"
        yield warning("settings", f"{cause}: a busy worker keeps deliveries that an idle one could run; recommended: 1")
    if conf.broker_connection_max_retries is not None:
        cause = f"broker_connection_max_retries={conf.broker_connection_max_retries}"
        yield warning(
            "settings", f"{cause}: a worker stops after so many attempts to reach the broker; recommended: None"
        )
    if driver_of(app) == REDIS and not conf.broker_transport_options.get("socket_timeout"):
        cause = "broker_transport_options has no socket_timeout"
        yield warning("settings", f"{cause}: a worker waits forever for a frozen Redis; recommended: 5")


Check = Callable[[CheckContext], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    _handlers,
    _database,
    _broker,
    _workers,
    _stuck,
    _tracking,
    _settings,
    _worker_settings,
)
