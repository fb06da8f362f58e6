"""Every error that Nitro raises, as one tree.

NitroError
├── SettingError          (ValueError)  a NITRO_* variable has a value that is not allowed
│   └── HandlersFailed                  a module of NITRO_HANDLERS cannot be imported
├── DriverOptionStays     (ValueError)  an option of an asynchronous driver that the synchronous one lacks
├── DeclarationError      (TypeError)   `@on` or `event` was used in a way that cannot work
│   ├── UnknownOption                   an offload option that does not exist
│   ├── OptionConflict                  one task declared twice with differing task options
│   ├── DuplicateHandler                two offloaded functions under one name
│   ├── NotOffloadable                  a callable that a worker could never find
│   ├── NotAccepted                     workers that would refuse the messages of handlers
│   └── DatabaseRefused                 `bind` was given a database that Nitro cannot use
├── EmitError             (TypeError)   `emit` was called in a way that cannot work
│   └── ContextStays                    a context variable that cannot travel
├── PayloadError          (TypeError)   a value cannot travel to a worker
├── PayloadUnreadable     (ValueError)  a worker cannot rebuild what arrived
│   └── SignatureRefused                it is not signed with NITRO_SIGNING_KEY
├── EntityError
│   ├── NotATable         (TypeError)   stored a class without `table=True`
│   ├── InvalidEntity     (ValueError)  `save()` of values that the fields do not allow
│   ├── EntityVanished    (LookupError) the row behind an entity is gone
│   ├── NotLoaded         (LookupError) a column that had not been loaded when its entity was emitted
│   ├── NotSaved          (RuntimeError) asked for related rows while some are not saved
│   ├── UnknownField      (TypeError)   asked for a field that the entity does not have
│   └── NotACondition     (TypeError)   asked with something that is no condition on rows
├── WrongThread           (RuntimeError) a blocking wait on the thread of the loop it waits for
├── TransactionError      (RuntimeError) `transaction()` used in a way that cannot work
│   ├── OpenElsewhere                   a write on another thread than the open transaction's
│   └── LeftElsewhere                   a block left in another thread or context than it was entered
├── DispatchError         (RuntimeError) offloaded handlers could not be published
└── OutboxError
    ├── OutboxOutdated  (RuntimeError) its tables are missing, or of another version
    ├── OutboxElsewhere (RuntimeError) its tables are in several schemas, or in another one
    ├── NoDatabase      (RuntimeError) a tracked delivery, and no database that workers share
    ├── OptionStays     (TypeError)    an option of a message that a row cannot keep
    ├── PoolStalls      (RuntimeError) a pool of greenlets over a driver that stops all of them
    ├── DeliveryLost    (RuntimeError) another run of a delivery has taken over
    └── NotTracked      (LookupError)  a delivery that has no row
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nitro.invocation import celery


class NitroError(Exception):
    """The root: `except NitroError` catches whatever the library itself raises."""

    def __init__(self, message: str = "") -> None:
        # Without Exception.__init__ `args` stay the facts, from which pickle and result backends rebuild it.
        self.message = message

    def __str__(self) -> str:
        return self.message


class SettingError(NitroError, ValueError):
    """A `NITRO_*` variable has a value that is not allowed."""

    def __init__(self, name: str, value: str, allowed: str) -> None:
        super().__init__(f"{name}={value!r} is not allowed; give {allowed}")


class HandlersFailed(SettingError):
    """A module of NITRO_HANDLERS cannot be imported."""

    def __init__(self, module: str, error: BaseException, place: str | None) -> None:
        where = "" if place is None else f" ({place})"
        why = " ".join(f"{type(error).__name__}: {error}".split())
        self.module = module
        NitroError.__init__(self, f"NITRO_HANDLERS names the module {module!r}, which cannot be imported: {why}{where}")


class DriverOptionStays(NitroError, ValueError):
    """An option of an asynchronous driver that the synchronous one cannot be told."""


class DeclarationError(NitroError, TypeError):
    """`@on`, `event` or `bind` was used in a way that cannot work."""


class UnknownOption(DeclarationError):
    """An offload option that neither Celery nor Nitro has."""

    def __init__(self, option: str, nearest: Sequence[str]) -> None:
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"offload has no option {option!r}{hint}")


class OptionConflict(DeclarationError):
    """One function was offloaded twice with differing options of its Celery task."""

    def __init__(self, handler: str, options: Iterable[str]) -> None:
        names = ", ".join(sorted(options))
        super().__init__(
            f"{handler} is already offloaded with another {names}: these belong to its one Celery task, "
            f"so give the same on every event, or a second name="
        )


class DuplicateHandler(DeclarationError):
    """Two different offloaded functions would answer to one task name."""

    def __init__(self, handler: str, first: str, second: str) -> None:
        super().__init__(f"two offloaded handlers are named {handler}: {first} and {second}; give one of them name=")


class NotOffloadable(DeclarationError):
    """A callable that a worker could never find by its name."""

    def __init__(self, handler: str, why: str, way_out: str) -> None:
        super().__init__(f"{handler} cannot be offloaded: {why}; {way_out}")


class NotAccepted(DeclarationError):
    """A worker would get the messages of handlers, which are JSON, and refuse them."""

    def __init__(self, app: str, accepted: Iterable[str], handlers: Sequence[str]) -> None:
        super().__init__(
            f"accept_content of the app {app!r} is {', '.join(accepted)}, and the messages of {', '.join(handlers)} "
            f"are JSON: add 'json' to it, or leave their queues to other workers with -Q"
        )


class DatabaseRefused(DeclarationError):
    """`bind` was given a database that Nitro cannot use."""

    def __init__(self, given: str, why: str) -> None:
        super().__init__(
            f"bind cannot use {given}: {why}; give an Engine or AsyncEngine of SQLAlchemy, or a URL, "
            f"for SQLite or PostgreSQL"
        )


class EmitError(NitroError, TypeError):
    """`emit` was called in a way that cannot work."""


class PayloadError(NitroError, TypeError):
    """A value cannot travel to a worker; nothing was published.

    Args:
        argument: where it is, such as `sender` or `kwargs['items'][2]`.
        kind: the name of its type.
        why: what is wrong with it, and the way out.
        handlers: names of the offloaded handlers it was meant for.
    """

    def __init__(self, argument: str, kind: str, why: str, handlers: Sequence[str] = ()) -> None:
        self.argument, self.kind, self.why = argument, kind, why
        receiver = f" for {', '.join(handlers)}" if handlers else ""
        super().__init__(f"{argument} ({kind}) cannot travel{receiver}: {why}")


class PayloadUnreadable(NitroError, ValueError):
    """A worker cannot rebuild what arrived: another version, a class it has not loaded, damage."""


class SignatureRefused(PayloadUnreadable):
    """A message without the right signature, which `NITRO_SIGNING_KEY` demands; it is never tried again."""

    def __init__(self, handler: str) -> None:
        super().__init__(f"a message for {handler} without the right signature, which NITRO_SIGNING_KEY demands")


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


class WrongThread(NitroError, RuntimeError):
    """A blocking wait on the thread of the event loop that it waits for."""

    def __init__(self, call: str, instead: str) -> None:
        super().__init__(f"{call} would block the running event loop for ever; use {instead} there")


class TransactionError(NitroError, RuntimeError):
    """`transaction()` was used in a way that cannot work."""


class OpenElsewhere(TransactionError):
    """A write, or an emit that has to wait for a commit, on another thread than the one of the open `transaction()`."""

    def __init__(self) -> None:
        super().__init__(
            "the `transaction()` that is open here belongs to another thread (or to the parent process), and nothing "
            "can be written or emitted in it from this one: open a `with transaction():` of its own in the function "
            "that runs on this thread, such as a `def` endpoint, or make that function `async def`"
        )


class LeftElsewhere(TransactionError):
    """A `transaction()` block was left in another place than it was entered, and rolled back.

    Args:
        place: the kind of place: `process`, `thread` or `context`.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        undone = "its parent process decides about it" if place == "process" else "it was rolled back"
        super().__init__(
            f"a `transaction()` block was left in another {place} than it was entered, so {undone}; what the code in "
            f"between has committed by itself stays: enter and leave a block in one function on one thread, or in an "
            f"`async def` dependency or fixture"
        )


class DispatchError(NitroError, RuntimeError):
    """Offloaded handlers could not be published; names each of them."""

    def __init__(self, event: str, handlers: Sequence[str], cause: BaseException) -> None:
        self.handlers = tuple(handlers)
        super().__init__(f"{event}: not dispatched: {', '.join(handlers)}: {cause}")


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
        way_out = f"run `{celery('nitro init')}`"
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


class OptionStays(OutboxError, TypeError):
    """An option of a message that a row cannot keep."""

    def __init__(self, handler: str, reason: str) -> None:
        super().__init__(f"the message options of {handler} cannot be kept in the outbox, which takes JSON: {reason}")


class ContextStays(EmitError):
    """A context variable that cannot travel."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the context variable {name!r} cannot travel: {reason}")


class DeliveryLost(OutboxError, RuntimeError):
    """Another run of a delivery has taken over, or it was cancelled; what this one wrote is rolled back."""

    def __init__(self, handler: str, emission: str, attempt: int) -> None:
        run = f"attempt {attempt} of {handler} for emission {emission}"
        super().__init__(f"{run} may not close its delivery any more: it was cancelled, or taken over")


class PoolStalls(OutboxError, RuntimeError):
    """A pool of greenlets over a driver that stops all of them while it waits for the database."""

    def __init__(self, pool: str, driver: str, way_out: str) -> None:
        super().__init__(
            f"the {pool} pool would stand still whenever {driver} waits for the database, and for ever where one "
            f"handler waits for another; {way_out}, or use -P threads or -P prefork"
        )


class NotTracked(OutboxError, LookupError):
    """A delivery that has no row."""

    def __init__(self, emission: str, handler: str | None = None) -> None:
        whose = emission if handler is None else f"{emission} for {handler}"
        super().__init__(
            f"emission {whose} has no tracked delivery; a message that is already in the broker "
            f"is stopped with app.control.revoke(task_id)"
        )
