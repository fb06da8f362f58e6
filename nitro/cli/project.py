"""What commands know of the project that they are called for: its handlers, and its Celery app."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celery import Celery


def load() -> None:
    """Wire the library, and declare the handlers and entities of the modules of `NITRO_HANDLERS`."""
    from importlib import import_module

    from nitro.infrastructure.events.dispatcher import dispatcher
    from nitro.settings import Settings

    dispatcher()
    for module in Settings.load().handlers:
        import_module(module)


def app_of(ctx: click.Context) -> Celery:
    """The app that `celery -A` was given; without one that of offloaded handlers, and not the bare one of Celery."""
    from nitro.infrastructure.offload.app import current_app

    root = ctx.find_root()
    return root.obj.app if root.params.get("app") else current_app()
