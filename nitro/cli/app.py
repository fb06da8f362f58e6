"""The `celery … nitro` commands.

Every start of `celery` imports this module, so a command imports its own dependencies when it runs.
"""

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
    """Adds `--no-color` to a command and its subcommands, and writes the reader's own app into the examples."""
    command.params.append(
        click.Option(
            ("--no-color",),
            is_flag=True,
            expose_value=False,
            callback=_disable_colour,
            help="Show no colours, as with NO_COLOR in the environment.",
        )
    )
    command.help = (command.help or "").replace(_EXAMPLE_COMMAND, celery_command(""))
    command.epilog = (command.epilog or "").replace(_EXAMPLE_COMMAND, celery_command(""))
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            add_common_options(subcommand)


def _disable_colour(ctx: click.Context, _option: click.Parameter, is_set: bool) -> None:
    """Switches colours off for the option, for NO_COLOR (https://no-color.org), or for `celery --no-color`."""
    if is_set or os.environ.get("NO_COLOR") or ctx.find_root().params.get("no_color"):
        ctx.color = False


@click.command("init")
@click.option("--sql", is_flag=True, help="Print the SQL, and do not execute it.")
@click.option("--schema", metavar="NAME", help="Create the tables in this schema of PostgreSQL, which is created too.")
@click.option(
    "--entities", is_flag=True, help="Create also the tables of all entities that the handlers' modules define."
)
def init(sql: bool, schema: str | None, entities: bool) -> None:
    """Creates the missing tables of Nitro, and upgrades older ones.

    It can run at any time, several times at once, and while workers run.

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
        click.echo("\n".join(f"{statement};" for statement in ("BEGIN", *statements, "COMMIT")))
        return
    versions.init(entities=entities, into=schema)
    click.echo(f"tables are there: {database_url()}")


def database_url() -> str:
    """Returns the URL of the database, without its password."""
    from nitro.infrastructure.database import engine

    return engine().url.render_as_string(hide_password=True)


class CommandGroup(click.Group):
    """A group of commands: a known error is shown as one line on stderr, with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command.

        Raises:
            ClickException: the library raised an error, or the database is unreachable.
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


if "celery.worker.control" in sys.modules:  # imported by each `celery` command, also for an app without handlers
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
    """Imports the modules of `NITRO_HANDLERS` in a worker whose app does not import the library itself.

    Raises:
        SystemExit: a setting has a wrong value. Celery would show another exception as an error of its own.
    """
    if os.environ.get("NITRO_HANDLERS"):
        from nitro.infrastructure.events.ports import dispatcher
        from nitro.infrastructure.worker.modules import import_handlers

        try:
            dispatcher()
        except SettingError as error:
            raise SystemExit(str(error)) from error
        import_handlers(sender)


if "celery.signals" in sys.modules:  # imported by each `celery` command; this module itself must not import celery
    sys.modules["celery.signals"].import_modules.connect(_import_handlers, weak=False)

add_common_options(nitro)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
