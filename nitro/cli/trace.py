"""`nitro trace`: an emission, or all emissions by an entity, with their handlers, as a tree over processes."""

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
"""Default of --since: the time for which closed deliveries are kept."""


@click.command("trace")
@click.argument("target", metavar="ID|Class:id")
@click.option(
    "--since",
    type=Moment(),
    default=DEFAULT_SINCE,
    show_default=True,
    help="For an entity: show emissions since this time.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="For an entity: maximum number of emissions.",
)
@click.option("--format", "form", type=click.Choice(["text", "json", "html"]), default="text", show_default=True)
@click.option("--json", "json", is_flag=True, help="Print JSON, as --format json does.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write the output to this file.")
def command(
    target: str, since: datetime, limit: int, form: Literal["text", "json", "html"], json: bool, output: Path | None
) -> None:
    """Shows an emission, or all emissions by an entity, with their handlers, as a tree over processes.

    An ID is the id of an emission or of a delivery; the latter is its Celery task id, as in Flower. Recorded are
    emissions with tracked deliveries, or all with NITRO_JOURNAL=on.

    \b
    Example: celery -A tasks nitro trace Order:o1
    Example: celery -A tasks nitro trace 0192f0c1-7a00-7000-8000-000000000000 --format html -o trace.html
    """
    from nitro.cli import trace_html
    from nitro.infrastructure.outbox import history

    load_handlers_or_warn()
    if ":" in target:
        emissions, is_truncated = history.trees_by_sender(target, since, limit)
        if is_truncated:
            click.echo(
                f"only the latest {limit} emissions, and those below them, are shown; --limit shows more", err=True
            )
    else:
        emissions = history.trees_by_id(target)
    if not emissions:
        if ":" in target and history.trees_by_sender(target, datetime.fromtimestamp(0, UTC), 1)[0]:
            raise click.ClickException(f"{target} has emitted nothing since {since:%Y-%m-%d %H:%M} UTC, but before")
        raise click.ClickException(f"nothing is recorded of {target}{_journal_hint()}")
    if history.has_split_trees(emissions):
        click.echo(
            f"after {history.MAX_TREE_DEPTH} levels the rest of a tree is shown as another tree, below its emission",
            err=True,
        )
    if json or form == "json":
        text = json_.dumps([asdict(emission) for emission in emissions], indent=2, default=datetime.isoformat)
    else:
        items = timeline.timeline_items(emissions, datetime.now(UTC))
        text = timeline.as_text(items) if form == "text" else trace_html.render_page(items, f"{target} · nitro trace")
    write_output(text, output)


def _journal_hint() -> str:
    from nitro.settings import Settings

    is_on = Settings.load().journal
    return "" if is_on else "; emissions without tracked deliveries are recorded with NITRO_JOURNAL=on"
