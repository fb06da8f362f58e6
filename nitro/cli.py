"""The `celery … nitro` commands: thin, and imported at every start of `celery`, so that they import late."""

from __future__ import annotations

import click


@click.group()
def nitro() -> None:
    """Domain events and their side effects."""


@nitro.command()
def init() -> None:
    """Create the tables of all entities that the handlers' modules define.

    Example: celery -A tasks nitro init
    """
    from importlib import import_module

    from nitro.infrastructure.database import create_tables, engine
    from nitro.settings import Settings

    for module in Settings.load().handlers:
        import_module(module)
    create_tables()
    click.echo(f"tables are there: {engine().url.render_as_string(hide_password=True)}")
