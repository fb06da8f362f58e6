"""Errors of what is stored: entities and the outbox."""

from __future__ import annotations

from collections.abc import Sequence

from nitro.errors.usage import NitroError
from nitro.invocation import celery_command


class EntityError(NitroError):
    """An entity could not be stored or found."""


class NotATable(EntityError, TypeError):
    """Stored or queried a class that has no table."""

    def __init__(self, entity: str, action: str) -> None:
        super().__init__(f"{entity}.{action}() needs a table: declare `class {entity}(Entity, table=True)`")


class InvalidEntity(EntityError, ValueError):
    """`save()` of values that the fields do not allow; the cause is pydantic's ValidationError."""

    def __init__(self, entity: str, reasons: Sequence[str]) -> None:
        super().__init__(f"{entity} was not saved: {'; '.join(reasons)}")


class EntityVanished(EntityError, LookupError):
    """The row behind an entity is gone."""

    def __init__(self, entity: str, action: str) -> None:
        super().__init__(f"{entity} has no row any more, so {action} is impossible")


class NotLoaded(EntityError, LookupError):
    """Read a column that was not loaded when its entity was emitted; the row may hold a later value."""

    def __init__(self, entity: str, names: Sequence[str]) -> None:
        listed = ", ".join(names)
        super().__init__(
            f"{entity} arrived without {listed}, which had not been loaded when it was emitted; load it before the "
            f"emit, or call refresh() to read what the row holds now"
        )


class NotSaved(EntityError, RuntimeError):
    """Asked the database for members of a relationship while some are not saved yet."""

    def __init__(self, entity: str, name: str) -> None:
        super().__init__(f"{entity}.{name} has members that were added or removed and not saved; save() it first")


class UnknownField(EntityError, TypeError):
    """Filtered, searched or ordered by a field that the entity does not have."""

    def __init__(self, entity: str, field: str, nearest: Sequence[str]) -> None:
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"{entity} has no field {field!r}{hint}")


class NotACondition(EntityError, TypeError):
    """Selected rows with something that is no condition on them, or deleted without any."""

    def __init__(self, entity: str, action: str, given: str) -> None:
        super().__init__(
            f"{entity}.{action}() got {given}; give expressions such as {entity}.id == 'o1' "
            f"or {entity}.id.is_(None), and sqlalchemy.true() for every row"
        )


class OutboxError(NitroError):
    """A tracked delivery could not be kept."""


class OutboxOutdated(OutboxError, RuntimeError):
    """The tables of the outbox are missing, have no version, or one that this library cannot use.

    Args:
        place: the database.
        found: their version; None where there are none, 0 where nothing says of which they are.
        lacking: names of those that are missing where others are there.
    """

    def __init__(self, place: str, found: int | None, wanted: int, lacking: Sequence[str] = ()) -> None:
        way_out = f"run `{celery_command('nitro init')}`"
        if found is not None and found > wanted:
            state, way_out = f"are of version {found}, and this library knows {wanted}", "update the library"
        elif found is None:
            state = "are missing"
        elif not found:
            state, way_out = "have no version: `nitro init` has not made them", f"{way_out}, which takes them over"
        elif lacking:
            state = f"are not complete: {', '.join(lacking)} is missing"
        else:
            state = f"are of version {found}, and this library needs {wanted}"
        super().__init__(f"the tables of the outbox in {place} {state}; {way_out}")


class OutboxElsewhere(OutboxError, RuntimeError):
    """The tables of the outbox are in several schemas, or in another one than they are to be created in."""

    def __init__(self, place: str, schemas: Sequence[str], wanted: str | None = None) -> None:
        found = f"the tables of the outbox in {place} are in schema {' and '.join(schemas)}"
        if wanted is None:
            way_out = "name the right one in the search path, such as ?options=-csearch_path%3Dapp in NITRO_DB_URL"
        else:
            way_out = f"move them to {wanted} with ALTER TABLE … SET SCHEMA, or run `nitro init` without --schema"
        super().__init__(f"{found}; {way_out}")


class NoDatabase(OutboxError, RuntimeError):
    """A tracked delivery over a broker of one's own, and no database that emitters and workers share."""

    def __init__(self, handlers: Sequence[str], delivery: str) -> None:
        super().__init__(
            f"{', '.join(handlers)}: delivery={delivery!r} is tracked in a database that emitters and workers share, "
            f"and none is set: give NITRO_DB_URL or bind(app, engine), or the handlers delivery='broker'"
        )


class OptionNotSerializable(OutboxError, TypeError):
    """An option of a message that a row cannot keep."""

    def __init__(self, handler: str, reason: str) -> None:
        super().__init__(f"the message options of {handler} cannot be kept in the outbox, which takes JSON: {reason}")


class PoolStalls(OutboxError, RuntimeError):
    """A pool of greenlets over a driver that stops all of them while it waits for the database."""

    def __init__(self, pool: str, driver: str, way_out: str) -> None:
        super().__init__(
            f"the {pool} pool would stand still whenever {driver} waits for the database, and for ever where one "
            f"handler waits for another; {way_out}, or use -P threads or -P prefork"
        )


class DeliveryLost(OutboxError, RuntimeError):
    """Another run of a delivery has taken over, or it was cancelled; what this one wrote is rolled back."""

    def __init__(self, handler: str, emission: str, attempt: int) -> None:
        run = f"attempt {attempt} of {handler} for emission {emission}"
        super().__init__(f"{run} may not close its delivery any more: it was cancelled, or taken over")


class NotTracked(OutboxError, LookupError):
    """A delivery that has no row."""

    def __init__(self, emission: str, handler: str | None = None) -> None:
        whose = emission if handler is None else f"{emission} for {handler}"
        super().__init__(
            f"emission {whose} has no tracked delivery; a message that is already in the broker "
            f"is stopped with app.control.revoke(task_id)"
        )
