"""`nitro outbox`: commands to list, show, replay, discard and purge deliveries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from nitro.cli import project, render
from nitro.cli.render import mask_payload
from nitro.cli.times import Moment

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

OPEN_STATES = ("waiting", "queued", "running")
CLOSED_STATES = ("done", "published", "dead", "cancelled")
"""States of closed deliveries. `published`: untracked, and left to the broker."""
DISCARDABLE_STATES = ("waiting", "queued", "dead")
"""States in which a delivery can be discarded."""

CommandFunction = Callable[..., None]


@click.group("outbox", epilog="Example: celery -A tasks nitro outbox list --state dead")
def group() -> None:
    """Deliveries in the outbox: waiting, queued, running, done or dead."""


def _state_option(allowed: Sequence[str], **settings: Any) -> Callable[[CommandFunction], CommandFunction]:
    help_ = settings.pop("help", "Only deliveries in this state; can be given several times.")
    return click.option("--state", "states", multiple=True, type=click.Choice(allowed), help=help_, **settings)


_ids_argument = click.argument("ids", nargs=-1, metavar="[ID]...")
_handler_option = click.option("--handler", metavar="NAME", help="Only deliveries to this handler.")
_json_option = click.option("--json", "json", is_flag=True, help="Print a JSON array of objects, for scripts.")
_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@group.command("list")
@_state_option(OPEN_STATES + CLOSED_STATES)
@_handler_option
@click.option("--event", metavar="NAME", help="Only deliveries of this event.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Maximum number of deliveries."
)
@_json_option
def list_(states: Sequence[str], handler: str | None, event: str | None, limit: int, json: bool) -> None:
    """Lists deliveries, the latest emission first.

    \b
    Example: celery -A tasks nitro outbox list --state dead --state waiting
    """
    from nitro.infrastructure.outbox import operations

    conditions = _conditions((), states, handler)
    if event is not None:
        conditions.append(operations.is_of_event(event))
    entries = operations.read_deliveries(*conditions, limit=limit + 1)
    if not entries:
        project.check_names(handler=handler, event=event)
    listed = entries[:limit]
    click.echo(render.as_json(listed) if json else render.as_table(listed))
    if listed != entries:
        click.echo(f"only the latest {limit} are listed; --limit lists more", err=True)


@group.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@_json_option
def show(ids: Sequence[str], json: bool) -> None:
    """Shows everything that is known about deliveries, with their payload.

    An ID is the id of an emission or of a delivery; the latter is its Celery task id. Values of a payload are masked
    if their name suggests a secret, or if their class lists it in `__nitro_mask__`.

    \b
    Example: celery -A tasks nitro outbox show 0192f0c1-7a00-7000-8000-000000000000
    """
    from nitro.infrastructure.outbox import operations

    entries = operations.read_deliveries(operations.has_id_in(ids))
    unknown = set(ids).difference(*((entry.id, entry.emission) for entry in entries))
    if entries or json:
        payloads = operations.read_payloads(operations.has_id_in(ids))
        masked = {id_: mask_payload(text) if text else None for id_, text in payloads.items()}
        click.echo(render.details_as_json(entries, masked) if json else render.details_as_text(entries, masked))
    if unknown:
        raise click.ClickException(f"no delivery or emission in the outbox has the id {', '.join(sorted(unknown))}")


@group.command()
@_ids_argument
@_state_option(CLOSED_STATES, help="Only deliveries in this state. [default: dead]")
@_handler_option
@_yes_option
def replay(ids: Sequence[str], states: Sequence[str], handler: str | None, yes: bool) -> None:
    """Runs dead letters, or other closed deliveries, again.

    They keep their idempotency key, and get all their retries again. An ID is the id of a delivery or of an emission.

    \b
    Example: celery -A tasks nitro outbox replay --handler shop.mail.confirm
    """
    from nitro.infrastructure.outbox import operations

    matching = _confirmed_conditions(ids, states, handler, "run again", yes)
    replayed = operations.replay(*matching)
    if not replayed:
        raise click.ClickException("no delivery runs again: each has no payload, or its state has changed meanwhile")
    click.echo(f"run again: {render.delivery_count(replayed)}")


@group.command()
@_ids_argument
@_state_option(DISCARDABLE_STATES, help="Only deliveries in this state. [default: dead]")
@_handler_option
@_yes_option
def discard(ids: Sequence[str], states: Sequence[str], handler: str | None, yes: bool) -> None:
    """Cancels dead letters, or deliveries that have not started.

    An ID is the id of a delivery or of an emission.

    \b
    Example: celery -A tasks nitro outbox discard --state waiting --handler shop.mail.confirm
    """
    from nitro.infrastructure.outbox import operations

    matching = _confirmed_conditions(ids, states, handler, "be cancelled", yes)
    discarded = operations.discard(*matching)
    if not discarded:
        raise click.ClickException("no delivery is cancelled: their states have changed meanwhile")
    click.echo(f"cancelled: {render.delivery_count(discarded)}")


@group.command()
@click.option(
    "--before",
    required=True,
    type=Moment(),
    help="Only deliveries emitted longer ago than this (14d, 12h, 30m), or before this date (UTC).",
)
@_state_option(CLOSED_STATES, default=("done", "published", "cancelled"), show_default=True)
@_yes_option
def purge(before: datetime, states: Sequence[str], yes: bool) -> None:
    """Deletes closed deliveries. With the state `done` it also deletes emissions that the journal has recorded.

    \b
    Example: celery -A tasks nitro outbox purge --before 14d --state done
    """
    from nitro.infrastructure.outbox import operations
    from nitro.infrastructure.outbox.retention import purge_deliveries, purge_emissions
    from nitro.infrastructure.outbox.states import is_in_states
    from nitro.infrastructure.outbox.versions import ensure_current

    ensure_current()
    description = f"what was emitted before {before:%Y-%m-%d %H:%M} UTC and is {' or '.join(states)}"
    if not yes:
        click.confirm(f"Delete {description}?", abort=True)
    total = sum(operations.count_by_state(is_in_states(states), operations.is_emitted_before(before)).values())
    deleted = 0
    with render.progress_bar("deleting", total) as progress:
        while count := purge_deliveries(before, tuple(states)):
            deleted += count
            progress.update(count)
    click.echo(f"deleted: {render.delivery_count(deleted)}")
    deleted_emissions = 0
    while "done" in states and (count := purge_emissions(before)):
        deleted_emissions += count
    if deleted_emissions:
        click.echo(f"deleted from the journal: {deleted_emissions}")


def _confirmed_conditions(
    ids: Sequence[str], states: Sequence[str], handler: str | None, action: str, yes: bool
) -> list[ColumnElement[bool]]:
    """Returns the conditions for the selected deliveries, after the operator has confirmed the action.

    Args:
        action: the words after "will" in the question.
        yes: whether to skip the question.

    Raises:
        UsageError: neither IDs, nor a state, nor a handler is given.
        ClickException: no delivery matches.
        Abort: the operator has declined.
    """
    from nitro.infrastructure.outbox import operations

    if not (ids or states or handler):
        raise click.UsageError("say which deliveries: give their IDs, --state or --handler")
    states = states or ("dead",)
    matching = _conditions(ids, states, handler)
    counts = operations.count_by_state(*matching)
    if not counts:
        project.check_names(handler=handler)
        other_counts = render.counts_by_state(operations.count_by_state(*_conditions(ids, (), handler)))
        raise click.ClickException(
            f"no such delivery is {' or '.join(states)}; there are: {other_counts or 'none at all'}"
        )
    if not yes:
        total = sum(counts.values())
        click.confirm(
            f"{render.delivery_count(total)} will {action} ({render.counts_by_state(counts)}). Go on?", abort=True
        )
    return matching


def _conditions(ids: Sequence[str], states: Sequence[str], handler: str | None) -> list[ColumnElement[bool]]:
    from nitro.infrastructure.outbox import operations
    from nitro.infrastructure.outbox.states import is_in_states

    return [
        *([operations.has_id_in(ids)] if ids else []),
        *([is_in_states(states)] if states else []),
        *([operations.is_for_handler(handler)] if handler is not None else []),
    ]
