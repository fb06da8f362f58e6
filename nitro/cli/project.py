"""The project that a command is called for: its handlers, its Celery app, the names that it knows."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celery import Celery

    from nitro.infrastructure.events import Event


NO_HANDLER_MESSAGE = "no handler is declared: the app imports no module with one, and NITRO_HANDLERS names none"


def load_handlers() -> None:
    """Wire the library, and import what a worker of the app would: its `include` and `imports`, what it discovers, and
    the modules of `NITRO_HANDLERS`.

    Raises:
        ClickException: a module cannot be imported; names it.
    """
    from nitro.errors import NitroError
    from nitro.infrastructure.events.ports import dispatcher

    dispatcher()
    app = app_of(click.get_current_context())
    try:
        app.loader.import_default_modules()
    except SystemExit as error:  # of a module of NITRO_HANDLERS, which it names
        raise click.ClickException(str(error)) from error
    except Exception as error:
        place = _failing_line(error)
        if place is None and isinstance(error, NitroError):
            raise
        told = " ".join("".join(traceback.format_exception_only(error)).split())
        where = f"{place}: " if place else ""
        raise click.ClickException(f"a module of handlers cannot be imported: {where}{told}") from error


def load_handlers_or_warn() -> None:
    """The same for a command that shows what is recorded, and needs no handler for that: says on stderr what is not."""
    try:
        load_handlers()
    except click.ClickException as error:
        click.echo(f"warning: {error.message}", err=True)


def events_with_handlers() -> list[Event]:
    """The events that somebody hears; says on stderr when there are none."""
    from nitro.infrastructure.events.events import connected_events

    events = connected_events()
    if not events:
        click.echo(f"warning: {NO_HANDLER_MESSAGE}", err=True)
    return events


def app_of(ctx: click.Context) -> Celery:
    """The app that `celery -A` was given; without one that of offloaded handlers, and not the bare one of Celery."""
    from nitro.infrastructure.offload.app import current_app

    root = ctx.find_root()
    return root.obj.app if root.params.get("app") else current_app()


def _failing_line(error: BaseException) -> str | None:
    """The file and line of the module that was being imported last; None when the import had not begun."""
    modules = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    return f"{modules[-1].filename}, line {modules[-1].lineno}" if modules else None


def check_names(*, handler: str | None = None, event: str | None = None) -> None:
    """See that each is declared here, or that a delivery has it; asked where nothing was found.

    Raises:
        ClickException: one is nowhere known; with the nearest that is.
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
    """Say on stderr which is nowhere known, for a command that waits for what may still come."""
    if handler is not None or event is not None:
        try:
            check_names(handler=handler, event=event)
        except click.ClickException as error:
            click.echo(f"warning: {error.message}", err=True)


def _raise_unknown(kind: str, name: str, known: set[str]) -> None:
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ": none is declared here, and no delivery has it"
    raise click.ClickException(f"no {kind} is named {name!r}{hint}")
