"""`nitro handlers` and `nitro explain`: who hears which event, and what an emit would do now."""

from __future__ import annotations

import json as json_
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from nitro.cli import render
from nitro.cli.project import events_with_handlers, load_handlers
from nitro.infrastructure.logs import escape_text

if TYPE_CHECKING:
    from nitro.infrastructure.events import Event

HEADINGS = ("EVENT", "#", "WHERE", "HANDLER", "KIND", "PRIORITY", "SENDER", "CONDITION", "DELIVERY", "OPTIONS")

_json_option = click.option("--json", "json", is_flag=True, help="For scripts.")


@click.command("handlers")
@click.option("--event", metavar="NAME", help="Only of this event.")
@_json_option
def handlers(event: str | None, json: bool) -> None:
    """List the events with their handlers, in the order in which an emit takes them.

    A handler in the queue is a Celery task of its name.

    \b
    Example: celery -A tasks nitro handlers --event order-placed
    """
    from nitro.infrastructure.offload.handler_list import describe_handlers

    load_handlers()
    rows = describe_handlers(select_events(event))
    click.echo(json_.dumps(rows, indent=2, default=str) if json else render.table(HEADINGS, map(_row_cells, rows)))


@click.command("explain")
@click.argument("event")
@click.option("--sender", metavar="Class:id", help="The entity that emits, which is read from its row; or a text.")
@click.option("--kwargs", metavar="JSON", default="{}", help="What is emitted besides, as an object.")
@_json_option
def explain(event: str, sender: str | None, kwargs: str, json: bool) -> None:
    """Say what an emit would do now: ask the conditions, weigh the payload, run no handler.

    \b
    Example: celery -A tasks nitro explain order-placed --sender Order:o1
    """
    from nitro.infrastructure.events import ANY

    load_handlers()
    told = _find_event(event).explain(ANY if sender is None else _parse_sender(sender), **_parse_object(kwargs))
    if json:
        click.echo(json_.dumps([{**asdict(verdict), "runs": verdict.runs} for verdict in told], indent=2))
    else:
        told[:] = [replace(verdict, condition=verdict.condition and escape_text(verdict.condition)) for verdict in told]
        click.echo(told)


def select_events(name: str | None) -> list[Event]:
    """The event of that name, or all that somebody hears.

    Raises:
        ClickException: nobody hears one of that name.
    """
    return [_find_event(name)] if name else events_with_handlers()


def _find_event(name: str) -> Event:
    """The event of that name that somebody hears.

    Raises:
        ClickException: there is none; suggests the nearest.
    """
    from difflib import get_close_matches

    from nitro.infrastructure.events.events import connected_events, default_namespace, is_glob

    found = [event for event in connected_events() if event.name == name]
    if not found and name in default_namespace and not is_glob(name):
        found = [default_namespace.event(name)]  # that only a glob hears
    if found:
        return found[0]
    near = get_close_matches(name, [event.name for event in connected_events()], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ": is the module of its handlers among NITRO_HANDLERS?"
    raise click.ClickException(f"no handler hears an event {name!r}{hint}")


def _row_cells(row: dict[str, Any]) -> tuple[str, ...]:
    options = " ".join(f"{name}={value}" for name, value in row["options"].items())
    facts = (row["where"], row["handler"], row["kind"], str(row["priority"]), row["sender"] or "-")
    condition = "yes" if row["condition"] else "-"
    return (row["event"], str(row["position"]), *facts, condition, row["delivery"] or "-", options)


def _parse_sender(text: str) -> object:
    """The entity of `Class:id`, else the text itself.

    Raises:
        ClickException: there is no such class, or no such row.
    """
    from nitro.domain.entities.base_entity import Entity
    from nitro.infrastructure.repository.loading import all_subclasses

    name, colon, key = text.partition(":")
    if not colon:
        return text
    classes = [cls for cls in all_subclasses(Entity) if name in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}")]
    if len(classes) != 1:
        found = ", ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in classes)
        raise click.ClickException(f"entities named {name}: {found or 'none'}; give one as module.Class:id")
    entity = classes[0].get(_parse_id(classes[0], key))
    if entity is None:
        raise click.ClickException(f"there is no {name} with the id {key}")
    return entity


def _parse_id(cls: type[Any], key: str) -> object:
    """The text as a value of the type that the class has for its id.

    Raises:
        ClickException: it is no such value.
    """
    from pydantic import TypeAdapter, ValidationError

    wanted: Any = cls.model_fields["id"].annotation
    try:
        return TypeAdapter(wanted).validate_python(key)
    except ValidationError as error:
        raise click.ClickException(f"{cls.__name__}:{key}: {error.errors()[0]['msg']}") from error


def _parse_object(text: str) -> dict[str, Any]:
    """The object that a JSON text is.

    Raises:
        BadParameter: it is none.
    """
    try:
        value = json_.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no JSON: {error}", param_hint="--kwargs") from error
    if not isinstance(value, dict):
        raise click.BadParameter(f"{text!r} is no JSON object", param_hint="--kwargs")
    return value
