"""What commands know of the project that they are called for: its handlers, and its Celery app."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celery import Celery

    from nitro.infrastructure.events import Event

NO_HANDLER = "no handler is declared: the app imports no module with one, and NITRO_HANDLERS names none"


def load() -> None:
    """Wire the library, and import what a worker of the app would: its `include` and `imports`, what it discovers, and
    the modules of `NITRO_HANDLERS`.

    Raises:
        ClickException: a module cannot be imported; names it.
    """
    from nitro.errors import NitroError
    from nitro.infrastructure.events.dispatcher import dispatcher

    dispatcher()
    app = app_of(click.get_current_context())
    try:
        app.loader.import_default_modules()
    except SystemExit as error:  # of a module of NITRO_HANDLERS, which it names
        raise click.ClickException(str(error)) from error
    except Exception as error:
        place = _place(error)
        if place is None and isinstance(error, NitroError):
            raise
        told = " ".join("".join(traceback.format_exception_only(error)).split())
        where = f"{place}: " if place else ""
        raise click.ClickException(f"a module of handlers cannot be imported: {where}{told}") from error


def load_what_can_be() -> None:
    """The same for a command that shows what is recorded, and needs no handler for that: says on stderr what is not."""
    try:
        load()
    except click.ClickException as error:
        click.echo(f"warning: {error.message}", err=True)


def heard() -> list[Event]:
    """The events that somebody hears; says on stderr when there are none."""
    from nitro.infrastructure.events.events import heard_events

    events = heard_events()
    if not events:
        click.echo(f"warning: {NO_HANDLER}", err=True)
    return events


def app_of(ctx: click.Context) -> Celery:
    """The app that `celery -A` was given; without one that of offloaded handlers, and not the bare one of Celery."""
    from nitro.infrastructure.offload.app import current_app

    root = ctx.find_root()
    return root.obj.app if root.params.get("app") else current_app()


def _place(error: BaseException) -> str | None:
    """The file and line of the module that was being imported last; None when the import had not begun."""
    modules = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    return f"{modules[-1].filename}, line {modules[-1].lineno}" if modules else None
