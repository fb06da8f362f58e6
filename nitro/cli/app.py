"""The `celery … nitro` commands: thin, and imported at every start of `celery`, so that they import late."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from nitro.cli import doctor, events, graph, outbox, relay, tail, trace
from nitro.cli.project import load_handlers
from nitro.errors import NitroError, SettingError
from nitro.invocation import celery_command

_EXAMPLE_COMMAND = "celery -A tasks "


def add_common_options(command: click.Command) -> None:
    """Add it to a command, and to those below it."""
    command.params.append(
        click.Option(
            ("--no-color",),
            is_flag=True,
            expose_value=False,
            callback=_disable_colour,
            help="Show no colours; NO_COLOR in the environment says so too.",
        )
    )
    command.help = (command.help or "").replace(_EXAMPLE_COMMAND, celery_command(""))
    command.epilog = (command.epilog or "").replace(_EXAMPLE_COMMAND, celery_command(""))
    if isinstance(command, click.Group):
        for below in command.commands.values():
            add_common_options(below)


def _disable_colour(ctx: click.Context, _option: click.Parameter, unwanted: bool) -> None:
    """Switch colours off where the option, the environment (https://no-color.org) or `celery --no-color` says so."""
    if unwanted or os.environ.get("NO_COLOR") or ctx.find_root().params.get("no_color"):
        ctx.color = False


@click.command("init")
@click.option("--sql", is_flag=True, help="Print the SQL and execute none of it.")
@click.option("--schema", metavar="NAME", help="Create them in this schema of PostgreSQL, and the schema with them.")
@click.option("--entities", is_flag=True, help="Also the tables of all entities that the handlers' modules define.")
def init(sql: bool, schema: str | None, entities: bool) -> None:
    """Create the missing tables of Nitro, and bring older ones up to date.

    It may be run again at any time, by several at once, and while workers run.

    \b
    Example: celery -A tasks nitro init
    """
    from nitro.infrastructure.database import engine
    from nitro.infrastructure.outbox import versions

    load_handlers()
    if schema and engine().dialect.name != "postgresql":
        raise click.UsageError(f"--schema is for PostgreSQL; {database_url()} has no schemas")
    if sql:
        statements = versions.init_script(entities=entities, into=schema)
        click.echo("\n".join(f"{each};" for each in ("BEGIN", *statements, "COMMIT")))
        return
    versions.init(entities=entities, into=schema)
    click.echo(f"tables are there: {database_url()}")


def database_url() -> str:
    """The database that the command is about, without its password."""
    from nitro.infrastructure.database import engine

    return engine().url.render_as_string(hide_password=True)


class CommandGroup(click.Group):
    """Commands whose known errors are one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for.

        Raises:
            ClickException: an error of the library, or a database that is away.
        """
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except NitroError as error:
            raise click.ClickException(_one_line(error)) from error
        except Exception as error:
            from sqlalchemy.exc import InterfaceError, OperationalError

            if isinstance(error, (OperationalError, InterfaceError)):
                raise click.ClickException(f"{database_url()}: {_one_line(error.orig)}") from error
            raise


@click.group(cls=CommandGroup, epilog="Example: celery -A tasks nitro trace Order:o1")
def nitro() -> None:
    """Domain events and their side effects."""


if "celery.worker.control" in sys.modules:  # as in each `celery` command line, also of an app that has no handler yet
    from nitro.infrastructure.worker import control

    control.register_commands()

nitro.add_command(init)
nitro.add_command(outbox.group)
nitro.add_command(relay.command)
nitro.add_command(events.handlers)
nitro.add_command(events.explain)
nitro.add_command(doctor.command)
nitro.add_command(graph.command)
nitro.add_command(trace.command)
nitro.add_command(tail.command)


def _import_handlers(sender: Any, **_signal: Any) -> None:
    """Have a worker import the handlers' modules also where nothing of its app imports the library.

    Raises:
        SystemExit: a setting has a value that is not allowed; Celery would show any other error as its own.
    """
    if os.environ.get("NITRO_HANDLERS"):
        from nitro.infrastructure.events.ports import dispatcher
        from nitro.infrastructure.worker.modules import import_handlers

        try:
            dispatcher()
        except SettingError as error:
            raise SystemExit(str(error)) from error
        import_handlers(sender)


if "celery.signals" in sys.modules:  # as in every `celery` command; this module alone loads no celery
    sys.modules["celery.signals"].import_modules.connect(_import_handlers, weak=False)

add_common_options(nitro)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
