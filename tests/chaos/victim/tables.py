"""What the project keeps: the ids that its emitter has committed, and the effects of its handlers."""

from nitro import Entity


class Committed(Entity, table=True):
    """An event that was committed; its id is the key that its handlers are given."""

    event: str


class Effect(Entity, table=True):
    """One effect of one handler. Nothing keeps a second one from being written, so that it is counted."""

    key: str
    handler: str
    attempt: int
