"""`nitro init`: the tables of the outbox are created, or brought up to date."""

from __future__ import annotations

import click

from nitro.cli.project import load


@click.command("init")
@click.option("--sql", is_flag=True, help="Print the SQL and execute none of it.")
@click.option("--schema", metavar="NAME", help="Create them in this schema of PostgreSQL, and the schema with them.")
@click.option("--entities", is_flag=True, help="Also the tables of all entities that the handlers' modules define.")
def command(sql: bool, schema: str | None, entities: bool) -> None:
    """Create the missing tables of Nitro, and bring older ones up to date.

    It may be run again at any time, by several at once, and while workers run.

    \b
    Example: celery -A tasks nitro init
    """
    from nitro.infrastructure.database import engine
    from nitro.infrastructure.outbox import versions

    load()
    if schema and engine().dialect.name != "postgresql":
        raise click.UsageError(f"--schema is for PostgreSQL; {place()} has no schemas")
    if sql:
        statements = versions.script(entities=entities, into=schema)
        click.echo("\n".join(f"{each};" for each in ("BEGIN", *statements, "COMMIT")))
        return
    versions.init(entities=entities, into=schema)
    click.echo(f"tables are there: {place()}")


def place() -> str:
    """The database that the command is about, without its password."""
    from nitro.infrastructure.database import engine

    return engine().url.render_as_string(hide_password=True)
