"""The tables of the project: the ids of committed events, and the effects of handlers."""

from nitro import Entity


class Committed(Entity, table=True):
    """A committed event; its id is the key that its handlers get."""

    event: str


class Effect(Entity, table=True):
    """An effect of a handler; the table has no unique key, so that a second effect is stored and counted."""

    key: str
    handler: str
    attempt: int
