"""`nitro doctor`: whether everything is there that a delivery needs, and what endangers a promise."""

from __future__ import annotations

import json as json_
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import click

from nitro.cli import listing
from nitro.cli.project import app_of, load

if TYPE_CHECKING:
    from celery import Celery

HEADINGS = ("", "CHECK", "FOUND")
ANSWER = 2.0
"""Seconds in which running workers answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of a check; `wrong` keeps deliveries from being made, a `warning` need not."""

    verdict: Literal["fine", "warning", "wrong"]
    check: str
    found: str


@click.command("doctor")
@click.option("--json", "json", is_flag=True, help="For scripts.")
@click.pass_context
def command(ctx: click.Context, json: bool) -> None:
    """Check broker, database, tables, workers and settings; 1 when something is wrong.

    \b
    Example: celery -A tasks nitro doctor
    """
    load()
    app = app_of(ctx)
    findings = [finding for check in CHECKS for finding in check(app)]
    if json:
        click.echo(json_.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        click.echo(listing.table(HEADINGS, ((each.verdict, each.check, each.found) for each in findings)))
    ctx.exit(int(any(finding.verdict == "wrong" for finding in findings)))


def _database(_app: Celery) -> Iterator[Finding]:
    from sqlalchemy.exc import SQLAlchemyError

    from nitro.errors import OutboxOutdated
    from nitro.infrastructure.database import engine
    from nitro.infrastructure.outbox.registry import tally
    from nitro.infrastructure.outbox.versions import ensure_current

    place = engine().url.render_as_string()
    try:
        with engine().connect():
            yield _fine("database", place)
        ensure_current()
        yield _fine("tables", "of this version")
        dead = tally().get("dead", 0)
    except OutboxOutdated as error:
        yield _wrong("tables", str(error))
    except SQLAlchemyError as error:
        yield _wrong("database", f"{place}: {getattr(error, 'orig', None) or error}")
    else:
        see = f"{listing.deliveries(dead)}; see: nitro outbox list --state dead"
        yield _warning("dead letters", see) if dead else _fine("dead letters", "none")


def _broker(app: Celery) -> Iterator[Finding]:
    from nitro.infrastructure.offload.broker import is_embedded
    from nitro.infrastructure.offload.line import Line
    from nitro.settings import Settings

    line = Line(app)
    place = f"embedded, in {Settings.load().home}" if is_embedded(app) else app.connection_for_write().as_uri()
    try:
        line.check()
    except Exception as error:  # noqa: BLE001  # whatever a transport raises is what was found
        yield _wrong("broker", f"{place}: {error or type(error).__name__}")
    else:
        yield _fine("broker", place)
        yield from _workers(app)
    finally:
        line.close()


def _workers(app: Celery) -> Iterator[Finding]:
    """Whether some running worker knows each handler that is declared here."""
    from nitro.infrastructure.offload.declarations import declared

    known = app.control.inspect(timeout=ANSWER).registered() or {}
    if not known:
        yield _warning("workers", "none answers; start one: celery -A … worker")
        return
    yield _fine("workers", ", ".join(sorted(known)))
    tasks = {str(task).partition(" ")[0] for told in known.values() for task in told}
    unknown = sorted(set(declared) - tasks)
    if unknown:
        why = f"no worker that answers knows {', '.join(unknown)}; is NITRO_HANDLERS the same there?"
        yield _wrong("handlers", why)
    else:
        yield _fine("handlers", f"{len(declared)} offloaded, all known to a worker")


def _tracking(app: Celery) -> Iterator[Finding]:
    from nitro.infrastructure.offload.declarations import declared
    from nitro.infrastructure.offload.parcel import TRACKED
    from nitro.infrastructure.outbox.keeper import tracks

    tracked = [name for name, declaration in declared.items() if declaration.offload.delivery in TRACKED]
    if tracked and not tracks(app):
        yield _wrong("outbox", "the broker is a server and no database is set that workers share; set NITRO_DB_URL")


def _settings(app: Celery) -> Iterator[Finding]:
    """What an app of one's own sets that a promise cannot bear."""
    from nitro.infrastructure.offload.broker import REDIS, driver_of, is_embedded
    from nitro.infrastructure.offload.message import is_signing

    conf = app.conf
    if not is_embedded(app) and not is_signing():
        yield _warning("settings", "messages are not signed: whoever reaches the broker can have handlers run")
    if conf.task_always_eager:
        yield _warning("settings", "task_always_eager: handlers run where it is emitted, nothing is tracked")
    limit, visible = conf.task_time_limit or 0, conf.broker_transport_options.get("visibility_timeout", 3600)
    if driver_of(app) == REDIS and limit > visible:
        shorter = f"visibility_timeout={visible} is shorter than task_time_limit={limit}"
        yield _warning("settings", f"{shorter}: Redis delivers what runs still once more")


def _worker_settings(app: Celery) -> Iterator[Finding]:
    """What a worker has only once, so that `bind` leaves it as it is: what keeps deliveries waiting, or out."""
    from nitro.infrastructure.offload.broker import REDIS, driver_of, is_embedded
    from nitro.infrastructure.offload.conf import accepts_json

    conf = app.conf
    if not accepts_json(app):
        accepted = ", ".join(map(str, conf.accept_content))
        yield _wrong("settings", f"accept_content is {accepted}: workers refuse the messages of handlers; add json")
    if is_embedded(app):
        return
    if conf.worker_prefetch_multiplier != 1:
        kept = f"worker_prefetch_multiplier={conf.worker_prefetch_multiplier}"
        yield _warning("settings", f"{kept}: a busy worker keeps deliveries that an idle one could run; recommended: 1")
    if conf.broker_connection_max_retries is not None:
        tries = f"broker_connection_max_retries={conf.broker_connection_max_retries}"
        yield _warning("settings", f"{tries}: a worker then gives up a broker that is away; recommended: None")
    if driver_of(app) == REDIS and not conf.broker_transport_options.get("socket_timeout"):
        silent = "broker_transport_options has no socket_timeout"
        yield _warning("settings", f"{silent}: a worker waits for ever for a Redis that is frozen; recommended: 5")


CHECKS: tuple[Callable[[Celery], Iterator[Finding]], ...] = (_database, _broker, _tracking, _settings, _worker_settings)


def _fine(check: str, found: str) -> Finding:
    return Finding(verdict="fine", check=check, found=found)


def _warning(check: str, found: str) -> Finding:
    return Finding(verdict="warning", check=check, found=found)


def _wrong(check: str, found: str) -> Finding:
    return Finding(verdict="wrong", check=check, found=" ".join(found.split()))
