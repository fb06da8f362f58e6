"""What commands know of the project that they are called for: its handlers, and its Celery app."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celery import Celery


def load() -> None:
    """Wire the library, and import what a worker of the app would.

    That is its `include` and `imports`, what it discovers, and the modules of `NITRO_HANDLERS`.
    """
    from nitro.infrastructure.events.dispatcher import dispatcher

    dispatcher()
    app_of(click.get_current_context()).loader.import_default_modules()


def app_of(ctx: click.Context) -> Celery:
    """The app that `celery -A` was given; without one that of offloaded handlers, and not the bare one of Celery."""
    from nitro.infrastructure.offload.app import current_app

    root = ctx.find_root()
    return root.obj.app if root.params.get("app") else current_app()
