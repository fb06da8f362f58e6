"""`nitro trace`: what became of an emission, or of all about an entity, as a tree over processes."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click

from nitro.cli import timeline
from nitro.cli.project import load_handlers_or_warn
from nitro.cli.render import write_output
from nitro.cli.times import Moment

DEFAULT_SINCE = "14d"
"""As long as closed deliveries are kept."""


@click.command("trace")
@click.argument("what", metavar="ID|Class:id")
@click.option(
    "--since", type=Moment(), default=DEFAULT_SINCE, show_default=True, help="Of an entity: emitted since then."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Of an entity: so many.")
@click.option("--format", "form", type=click.Choice(["text", "json", "html"]), default="text", show_default=True)
@click.option("--json", "json", is_flag=True, help="The same as --format json.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file.")
def command(
    what: str, since: datetime, limit: int, form: Literal["text", "json", "html"], json: bool, output: Path | None
) -> None:
    """Show what became of an emission, or of all emissions by an entity, as a tree over processes.

    An ID is that of an emission, or of a delivery, which is its Celery task id in Flower. Recorded are emissions that
    have queued tracked deliveries; with NITRO_JOURNAL=on all.

    \b
    Example: celery -A tasks nitro trace Order:o1
    Example: celery -A tasks nitro trace 0192f0c1-7a00-7000-8000-000000000000 --format html -o trace.html
    """
    from nitro.cli import trace_html
    from nitro.infrastructure.outbox import history

    load_handlers_or_warn()
    if ":" in what:
        told, more = history.trees_by_sender(what, since, limit)
        if more:
            click.echo(f"only what began in the latest {limit} emissions is shown; --limit shows more", err=True)
    else:
        told = history.trees_by_id(what)
    if not told:
        if ":" in what and history.trees_by_sender(what, datetime.fromtimestamp(0, UTC), 1)[0]:
            raise click.ClickException(f"{what} has emitted nothing since {since:%Y-%m-%d %H:%M} UTC, but before")
        raise click.ClickException(f"nothing is recorded of {what}{_journal_hint()}")
    if history.has_split_trees(told):
        click.echo(
            f"after {history.MAX_TREE_DEPTH} levels a tree goes on as another one, below the same emission", err=True
        )
    if json or form == "json":
        text = json_.dumps([asdict(each) for each in told], indent=2, default=datetime.isoformat)
    else:
        found = timeline.timeline_items(told, datetime.now(UTC))
        text = timeline.as_text(found) if form == "text" else trace_html.render_page(found, f"{what} · nitro trace")
    write_output(text, output)


def _journal_hint() -> str:
    from nitro.settings import Settings

    on = Settings.load().journal
    return "" if on else "; emissions without tracked deliveries are recorded with NITRO_JOURNAL=on"
