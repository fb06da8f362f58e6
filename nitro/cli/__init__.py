"""The `celery … nitro` commands: thin, and imported at every start of `celery`, so that they import late."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from nitro.cli import doctor, events, graph, init, outbox, relay, tail, trace
from nitro.cli.appearance import complete
from nitro.errors import NitroError, SettingError


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
                raise click.ClickException(f"{init.place()}: {_line(error.orig)}") from error
            raise


@click.group(cls=Commands, epilog="Example: celery -A tasks nitro trace Order:o1")
def nitro() -> None:
    """Domain events and their side effects."""


if "celery.worker.control" in sys.modules:  # as in each `celery` command line, also of an app that has no handler yet
    from nitro.infrastructure.worker import questions

    questions.wire()

nitro.add_command(init.command)
nitro.add_command(outbox.commands)
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
        from nitro.infrastructure.events.dispatcher import dispatcher
        from nitro.infrastructure.worker.modules import import_handlers

        try:
            dispatcher()
        except SettingError as error:
            raise SystemExit(str(error)) from error
        import_handlers(sender)


if "celery.signals" in sys.modules:  # as in every `celery` command; this module alone loads no celery
    sys.modules["celery.signals"].import_modules.connect(_import_handlers, weak=False)

complete(nitro)


def _line(error: object) -> str:
    return " ".join(str(error).split())
