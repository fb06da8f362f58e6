"""`nitro handlers` and `nitro explain`: the handlers of each event, and the effect that an emit would have now."""

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

_json_option = click.option("--json", "json", is_flag=True, help="Print JSON, for scripts.")


@click.command("handlers")
@click.option("--event", metavar="NAME", help="List only this event.")
@_json_option
def handlers(event: str | None, json: bool) -> None:
    """Lists the events with their handlers, in the order in which an emit runs them.

    An offloaded handler is a Celery task with the handler's name.

    \b
    Example: celery -A tasks nitro handlers --event order-placed
    """
    from nitro.infrastructure.offload.handler_list import describe_handlers

    load_handlers()
    rows = describe_handlers(select_events(event))
    click.echo(json_.dumps(rows, indent=2, default=str) if json else render.table(HEADINGS, map(_row_cells, rows)))


@click.command("explain")
@click.argument("event")
@click.option("--sender", metavar="Class:id", help="The entity that emits, which is read from the database; or a text.")
@click.option("--kwargs", metavar="JSON", default="{}", help="The keyword arguments of the emit, as a JSON object.")
@_json_option
def explain(event: str, sender: str | None, kwargs: str, json: bool) -> None:
    """Explains an emit without running a handler: evaluates the conditions, and measures the payload.

    \b
    Example: celery -A tasks nitro explain order-placed --sender Order:o1
    """
    from nitro.infrastructure.events import ANY

    load_handlers()
    explanation = _find_event(event).explain(ANY if sender is None else _parse_sender(sender), **_parse_object(kwargs))
    if json:
        click.echo(json_.dumps([{**asdict(verdict), "runs": verdict.runs} for verdict in explanation], indent=2))
    else:
        explanation[:] = [
            replace(verdict, condition=verdict.condition and escape_text(verdict.condition)) for verdict in explanation
        ]
        click.echo(explanation)


def select_events(name: str | None) -> list[Event]:
    """Returns the event of a name, or without a name all events with handlers.

    Raises:
        ClickException: no handler hears an event of this name.
    """
    return [_find_event(name)] if name else events_with_handlers()


def _find_event(name: str) -> Event:
    """Returns the event of a name, which must have a handler.

    Raises:
        ClickException: no handler hears it; the message suggests the nearest name.
    """
    from difflib import get_close_matches

    from nitro.infrastructure.events.events import connected_events, default_namespace, is_glob

    events = [event for event in connected_events() if event.name == name]
    if not events and name in default_namespace and not is_glob(name):
        events = [default_namespace.event(name)]  # heard by a glob only
    if events:
        return events[0]
    matches = get_close_matches(name, [event.name for event in connected_events()], n=1)
    hint = f"; did you mean {matches[0]!r}?" if matches else ": is the module of its handlers among NITRO_HANDLERS?"
    raise click.ClickException(f"no handler hears an event {name!r}{hint}")


def _row_cells(row: dict[str, Any]) -> tuple[str, ...]:
    options = " ".join(f"{name}={value}" for name, value in row["options"].items())
    cells = (row["where"], row["handler"], row["kind"], str(row["priority"]), row["sender"] or "-")
    condition = "yes" if row["condition"] else "-"
    return (row["event"], str(row["position"]), *cells, condition, row["delivery"] or "-", options)


def _parse_sender(text: str) -> object:
    """Returns the entity that `Class:id` names; a text without a colon is returned itself.

    Raises:
        ClickException: no class or no row matches, or several classes have the name.
    """
    from nitro.domain.entities.base_entity import Entity
    from nitro.infrastructure.repository.loading import all_subclasses

    name, colon, key = text.partition(":")
    if not colon:
        return text
    classes = [cls for cls in all_subclasses(Entity) if name in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}")]
    if len(classes) != 1:
        candidates = ", ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in classes)
        raise click.ClickException(f"entities named {name}: {candidates or 'none'}; give one as module.Class:id")
    entity = classes[0].get(_parse_id(classes[0], key))
    if entity is None:
        raise click.ClickException(f"there is no {name} with the id {key}")
    return entity


def _parse_id(cls: type[Any], key: str) -> object:
    """Returns a text as a value of the type of the class's id.

    Raises:
        ClickException: the text is no value of that type.
    """
    from pydantic import TypeAdapter, ValidationError

    id_type: Any = cls.model_fields["id"].annotation
    try:
        return TypeAdapter(id_type).validate_python(key)
    except ValidationError as error:
        raise click.ClickException(f"{cls.__name__}:{key}: {error.errors()[0]['msg']}") from error


def _parse_object(text: str) -> dict[str, Any]:
    """Returns the object in a JSON text.

    Raises:
        BadParameter: the text is no JSON object.
    """
    try:
        value = json_.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no JSON: {error}", param_hint="--kwargs") from error
    if not isinstance(value, dict):
        raise click.BadParameter(f"{text!r} is no JSON object", param_hint="--kwargs")
    return value
