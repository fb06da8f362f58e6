"""Names that an operator gives: one that nobody knows is a mistake, not an empty list."""

from __future__ import annotations

import click


def check(*, handler: str | None = None, event: str | None = None) -> None:
    """See that each is declared here, or that a delivery has it; asked where nothing was found.

    Raises:
        ClickException: one is nowhere known; with the nearest that is.
    """
    if handler is None and event is None:
        return
    from nitro.cli.project import load_what_can_be
    from nitro.infrastructure.events.events import default_namespace
    from nitro.infrastructure.offload.declarations import declared
    from nitro.infrastructure.outbox import registry

    load_what_can_be()
    if handler is not None and handler not in declared and not registry.entries(registry.of_handler(handler), limit=1):
        _refuse("handler", handler, {*declared, *registry.latest_names("handler")})
    if event is not None and event not in default_namespace and not registry.entries(registry.of_event(event), limit=1):
        _refuse("event", event, {*default_namespace, *registry.latest_names("event")})


def warn(*, handler: str | None, event: str | None) -> None:
    """Say on stderr which is nowhere known, for a command that waits for what may still come."""
    if handler is not None or event is not None:
        try:
            check(handler=handler, event=event)
        except click.ClickException as error:
            click.echo(f"warning: {error.message}", err=True)


def _refuse(kind: str, name: str, known: set[str]) -> None:
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ": none is declared here, and no delivery has it"
    raise click.ClickException(f"no {kind} is named {name!r}{hint}")
