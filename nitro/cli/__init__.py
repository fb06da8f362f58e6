"""The `celery … nitro` commands: thin, and imported at every start of `celery`, so that they import late."""

from __future__ import annotations

from typing import Any

import click

from nitro.cli import doctor, events, graph, outbox, relay, tail, trace
from nitro.cli.appearance import complete
from nitro.cli.project import load
from nitro.errors import NitroError


class Commands(click.Group):
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
            raise click.ClickException(_line(error)) from error
        except Exception as error:
            from sqlalchemy.exc import InterfaceError, OperationalError

            if isinstance(error, (OperationalError, InterfaceError)):
                raise click.ClickException(f"{_place()}: {_line(error.orig)}") from error
            raise


@click.group(cls=Commands, epilog="Example: celery -A tasks nitro trace Order:o1")
def nitro() -> None:
    """Domain events and their side effects."""


nitro.add_command(outbox.commands)
nitro.add_command(relay.command)
nitro.add_command(events.handlers)
nitro.add_command(events.explain)
nitro.add_command(doctor.command)
nitro.add_command(graph.command)
nitro.add_command(trace.command)
nitro.add_command(tail.command)


@nitro.command()
def init() -> None:
    """Create the missing tables, and bring older ones up to date.

    They are those of the outbox, and of all entities that the handlers' modules define.

    \b
    Example: celery -A tasks nitro init
    """
    from nitro.infrastructure.database import create_tables

    load()
    create_tables()
    click.echo(f"tables are there: {_place()}")


complete(nitro)


def _place() -> str:
    from nitro.infrastructure.database import engine

    return engine().url.render_as_string(hide_password=True)


def _line(error: object) -> str:
    return " ".join(str(error).split())
