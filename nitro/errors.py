"""Every error that Nitro raises, as one tree.

NitroError
├── SettingError          (ValueError)  a NITRO_* variable has a value that is not allowed
├── DeclarationError      (TypeError)   `@on` or `event` was used in a way that cannot work
│   ├── UnknownOption                   an offload option that does not exist
│   ├── OptionConflict                  one task declared twice with differing task options
│   ├── DuplicateHandler                two offloaded functions under one name
│   └── NotOffloadable                  a callable that a worker could never find
├── EmitError             (TypeError)   `emit` was called in a way that cannot work
│   └── ContextStays                    a context variable that cannot travel
├── PayloadError          (TypeError)   a value cannot travel to a worker
├── PayloadUnreadable     (ValueError)  a worker cannot rebuild what arrived
│   └── SignatureRefused                it is not signed with NITRO_SIGNING_KEY
├── EntityError
│   ├── NotATable         (TypeError)   stored a class without `table=True`
│   ├── InvalidEntity     (ValueError)  `save()` of values that the fields do not allow
│   ├── EntityVanished    (LookupError) the row behind an entity is gone
│   ├── UnknownField      (TypeError)   asked for a field that the entity does not have
│   └── NotACondition     (TypeError)   asked with something that is no condition on rows
├── WrongThread           (RuntimeError) a blocking wait on the thread of the loop it waits for
├── TransactionError      (RuntimeError) `transaction()` used in a way that cannot work
├── DispatchError         (RuntimeError) offloaded handlers could not be published
└── OutboxError
    ├── OutboxOutdated  (RuntimeError) its tables are missing, or of another version
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


class DispatchError(NitroError, RuntimeError):
    """Offloaded handlers could not be published; names each of them."""

    def __init__(self, event: str, handlers: Sequence[str], cause: BaseException) -> None:
        self.handlers = tuple(handlers)
        super().__init__(f"{event}: not dispatched: {', '.join(handlers)}: {cause}")


class OutboxError(NitroError):
    """A tracked delivery could not be kept."""


class OutboxOutdated(OutboxError, RuntimeError):
    """The tables of the outbox are missing, or of another version than this library."""

    def __init__(self, place: str, found: int | None, wanted: int) -> None:
        if found is not None and found > wanted:
            state, way_out = f"are of version {found}, and this library knows {wanted}", "update the library"
        else:
            state = "are missing" if found is None else f"are of version {found}, and this library needs {wanted}"
            way_out = f"run `{celery('nitro init')}`"
        super().__init__(f"the tables of the outbox in {place} {state}; {way_out}")


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
