"""The user's project: its Celery app, its handlers, and the names of its events and handlers."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celery import Celery

    from nitro.infrastructure.events import Event


NO_HANDLER_MESSAGE = "no handler is declared: the app imports no module with one, and NITRO_HANDLERS names none"


def load_handlers() -> None:
    """Wires the library, and imports the modules that a worker of the app imports.

    They are its `include` and `imports`, the modules that it discovers, and those of `NITRO_HANDLERS`.

    Raises:
        ClickException: a module cannot be imported; the message names it.
    """
    from nitro.errors import NitroError
    from nitro.infrastructure.events.ports import dispatcher

    dispatcher()
    app = app_of(click.get_current_context())
    try:
        app.loader.import_default_modules()
    except SystemExit as error:  # its message names the module of NITRO_HANDLERS
        raise click.ClickException(str(error)) from error
    except Exception as error:
        line = _failing_line(error)
        if line is None and isinstance(error, NitroError):
            raise
        error_text = " ".join("".join(traceback.format_exception_only(error)).split())
        prefix = f"{line}: " if line else ""
        raise click.ClickException(f"a module of handlers cannot be imported: {prefix}{error_text}") from error


def load_handlers_or_warn() -> None:
    """Loads the handlers for a command that works without them: a failed import is a warning on stderr."""
    try:
        load_handlers()
    except click.ClickException as error:
        click.echo(f"warning: {error.message}", err=True)


def events_with_handlers() -> list[Event]:
    """Returns the events with handlers; warns on stderr if there are none."""
    from nitro.infrastructure.events.events import connected_events

    events = connected_events()
    if not events:
        click.echo(f"warning: {NO_HANDLER_MESSAGE}", err=True)
    return events


def app_of(ctx: click.Context) -> Celery:
    """Returns the app of `celery -A`; without that option the app of offloaded handlers, not Celery's default app."""
    from nitro.infrastructure.offload.app import current_app

    root = ctx.find_root()
    return root.obj.app if root.params.get("app") else current_app()


def _failing_line(error: BaseException) -> str | None:
    """Returns file and line of the innermost module whose import failed; None if no import had begun."""
    modules = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    return f"{modules[-1].filename}, line {modules[-1].lineno}" if modules else None


def check_names(*, handler: str | None = None, event: str | None = None) -> None:
    """Checks that names are declared in the project or occur in a delivery. Used when a search found nothing.

    Raises:
        ClickException: a name is unknown; the message suggests the nearest name.
    """
    if handler is None and event is None:
        return
    from nitro.infrastructure.events.events import default_namespace
    from nitro.infrastructure.offload.declarations import declarations_by_name
    from nitro.infrastructure.outbox import operations

    load_handlers_or_warn()
    if (
        handler is not None
        and handler not in declarations_by_name
        and not operations.read_deliveries(operations.is_for_handler(handler), limit=1)
    ):
        _raise_unknown("handler", handler, {*declarations_by_name, *operations.latest_names("handler")})
    if (
        event is not None
        and event not in default_namespace
        and not operations.read_deliveries(operations.is_of_event(event), limit=1)
    ):
        _raise_unknown("event", event, {*default_namespace, *operations.latest_names("event")})


def warn_unknown_names(*, handler: str | None, event: str | None) -> None:
    """Warns on stderr of an unknown name, for a command whose deliveries may still come."""
    if handler is not None or event is not None:
        try:
            check_names(handler=handler, event=event)
        except click.ClickException as error:
            click.echo(f"warning: {error.message}", err=True)


def _raise_unknown(kind: str, name: str, known_names: set[str]) -> None:
    from difflib import get_close_matches

    matches = get_close_matches(name, sorted(known_names), n=1)
    hint = f"; did you mean {matches[0]!r}?" if matches else ": none is declared here, and no delivery has it"
    raise click.ClickException(f"no {kind} is named {name!r}{hint}")
