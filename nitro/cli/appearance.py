"""Appearance: what all commands have in common: `--no-color`, and examples with the reader's own app."""

from __future__ import annotations

import os

import click

from nitro.invocation import celery

_WRITTEN = "celery -A tasks "


def complete(command: click.Command) -> None:
    """Add it to a command, and to those below it."""
    command.params.append(
        click.Option(
            ("--no-color",),
            is_flag=True,
            expose_value=False,
            callback=_colour,
            help="Show no colours; NO_COLOR in the environment says so too.",
        )
    )
    command.help = (command.help or "").replace(_WRITTEN, celery(""))
    command.epilog = (command.epilog or "").replace(_WRITTEN, celery(""))
    if isinstance(command, click.Group):
        for below in command.commands.values():
            complete(below)


def _colour(ctx: click.Context, _option: click.Parameter, unwanted: bool) -> None:
    """Switch colours off where the option, the environment (https://no-color.org) or `celery --no-color` says so."""
    if unwanted or os.environ.get("NO_COLOR") or ctx.find_root().params.get("no_color"):
        ctx.color = False
