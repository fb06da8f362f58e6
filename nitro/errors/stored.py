"""Errors of entities and of the outbox."""

from __future__ import annotations

from collections.abc import Sequence

from nitro.errors.usage import NitroError
from nitro.invocation import celery_command


class EntityError(NitroError):
    """An entity could not be stored or found."""


class NotATable(EntityError, TypeError):
    """A class without a table was stored or queried."""

    def __init__(self, entity: str, action: str) -> None:
        super().__init__(f"{entity}.{action}() needs a table: declare `class {entity}(Entity, table=True)`")


class InvalidEntity(EntityError, ValueError):
    """`save()` found values that the fields do not allow; the cause is pydantic's ValidationError."""

    def __init__(self, entity: str, reasons: Sequence[str]) -> None:
        super().__init__(f"{entity} was not saved: {'; '.join(reasons)}")


class EntityVanished(EntityError, LookupError):
    """The row of an entity does not exist any more."""

    def __init__(self, entity: str, action: str) -> None:
        super().__init__(f"{entity} has no row any more, so {action} is impossible")


class NotLoaded(EntityError, LookupError):
    """A column was read that was not loaded when its entity was emitted; the row may hold a later value."""

    def __init__(self, entity: str, names: Sequence[str]) -> None:
        listed = ", ".join(names)
        super().__init__(
            f"{entity} arrived without {listed}, which had not been loaded when it was emitted; load it before the "
            f"emit, or call refresh() to read what the row holds now"
        )


class NotSaved(EntityError, RuntimeError):
    """The members of a relationship were queried while it had unsaved changes."""

    def __init__(self, entity: str, name: str) -> None:
        super().__init__(f"{entity}.{name} has members that were added or removed and not saved; save() it first")


class UnknownField(EntityError, TypeError):
    """A query filtered, searched or ordered by a field that the entity does not have."""

    def __init__(self, entity: str, field: str, nearest: Sequence[str]) -> None:
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"{entity} has no field {field!r}{hint}")


class NotACondition(EntityError, TypeError):
    """A query got a value that is no condition on rows, or a deletion got no condition."""

    def __init__(self, entity: str, action: str, value: str) -> None:
        super().__init__(
            f"{entity}.{action}() got {value}; give expressions such as {entity}.id == 'o1' "
            f"or {entity}.id.is_(None), and sqlalchemy.true() for every row"
        )


class OutboxError(NitroError):
    """The root of the errors about the outbox and its deliveries."""


class OutboxOutdated(OutboxError, RuntimeError):
    """The tables of the outbox are missing or incomplete, or have a version that this library cannot use.

    Args:
        database: URL of the database.
        version: version of the tables; None without tables, 0 for tables without a version.
        expected: version that this library uses.
        missing: names of the missing tables, when there are others.
    """

    def __init__(self, database: str, version: int | None, expected: int, missing: Sequence[str] = ()) -> None:
        remedy = f"run `{celery_command('nitro init')}`"
        if version is not None and version > expected:
            state, remedy = f"are of version {version}, and this library knows {expected}", "update the library"
        elif version is None:
            state = "are missing"
        elif not version:
            state, remedy = "have no version: `nitro init` has not made them", f"{remedy}, which takes them over"
        elif missing:
            state = f"are not complete: {', '.join(missing)} is missing"
        else:
            state = f"are of version {version}, and this library needs {expected}"
        super().__init__(f"the tables of the outbox in {database} {state}; {remedy}")


class OutboxElsewhere(OutboxError, RuntimeError):
    """The tables of the outbox are in several schemas, or in another schema than `nitro init` was given."""

    def __init__(self, database: str, schemas: Sequence[str], target: str | None = None) -> None:
        state = f"the tables of the outbox in {database} are in schema {' and '.join(schemas)}"
        if target is None:
            remedy = "name the right one in the search path, such as ?options=-csearch_path%3Dapp in NITRO_DB_URL"
        else:
            remedy = f"move them to {target} with ALTER TABLE … SET SCHEMA, or run `nitro init` without --schema"
        super().__init__(f"{state}; {remedy}")


class NoDatabase(OutboxError, RuntimeError):
    """A delivery is tracked and the app names its broker, but no database that emitters and workers share is set."""

    def __init__(self, handlers: Sequence[str], delivery: str) -> None:
        super().__init__(
            f"{', '.join(handlers)}: delivery={delivery!r} is tracked in a database that emitters and workers share, "
            f"and none is set: give NITRO_DB_URL or bind(app, engine), or the handlers delivery='broker'"
        )


class OptionNotSerializable(OutboxError, TypeError):
    """An option of a message cannot be kept in a row, because it is not JSON."""

    def __init__(self, handler: str, reason: str) -> None:
        super().__init__(f"the message options of {handler} cannot be kept in the outbox, which takes JSON: {reason}")


class PoolStalls(OutboxError, RuntimeError):
    """A worker's pool of greenlets uses a database driver that stops all of them while it waits."""

    def __init__(self, pool: str, driver: str, remedy: str) -> None:
        super().__init__(
            f"the {pool} pool would stand still whenever {driver} waits for the database, and for ever where one "
            f"handler waits for another; {remedy}, or use -P threads or -P prefork"
        )


class DeliveryLost(OutboxError, RuntimeError):
    """A run may not close its delivery, which was cancelled or taken over; the writes of the run are rolled back."""

    def __init__(self, handler: str, emission: str, attempt: int) -> None:
        run = f"attempt {attempt} of {handler} for emission {emission}"
        super().__init__(f"{run} may not close its delivery any more: it was cancelled, or taken over")


class NotTracked(OutboxError, LookupError):
    """A delivery has no row in the outbox."""

    def __init__(self, emission: str, handler: str | None = None) -> None:
        subject = emission if handler is None else f"{emission} for {handler}"
        super().__init__(
            f"emission {subject} has no tracked delivery; a message that is already in the broker "
            f"is stopped with app.control.revoke(task_id)"
        )
