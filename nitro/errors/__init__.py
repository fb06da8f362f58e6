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
│   ├── NoDispatcher                    no installed distribution, or several, to offload with
│   └── DatabaseRefused                 `bind` was given a database that Nitro cannot use
├── EmitError             (TypeError)   `emit` was called in a way that cannot work
│   └── ContextNotSerializable          a context variable that cannot travel
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
    ├── OptionNotSerializable (TypeError) an option of a message that a row cannot keep
    ├── PoolStalls      (RuntimeError) a pool of greenlets over a driver that stops all of them
    ├── DeliveryLost    (RuntimeError) another run of a delivery has taken over
    └── NotTracked      (LookupError)  a delivery that has no row
"""

from __future__ import annotations

from nitro.errors.stored import (
    DeliveryLost,
    EntityError,
    EntityVanished,
    InvalidEntity,
    NoDatabase,
    NotACondition,
    NotATable,
    NotLoaded,
    NotSaved,
    NotTracked,
    OptionNotSerializable,
    OutboxElsewhere,
    OutboxError,
    OutboxOutdated,
    PoolStalls,
    UnknownField,
)
from nitro.errors.usage import (
    ContextNotSerializable,
    DatabaseRefused,
    DeclarationError,
    DispatchError,
    DriverOptionStays,
    DuplicateHandler,
    EmitError,
    HandlersFailed,
    LeftElsewhere,
    NitroError,
    NoDispatcher,
    NotAccepted,
    NotOffloadable,
    OpenElsewhere,
    OptionConflict,
    PayloadError,
    PayloadUnreadable,
    SettingError,
    SignatureRefused,
    TransactionError,
    UnknownOption,
    WrongThread,
)

ContextStays, OptionStays = ContextNotSerializable, OptionNotSerializable  # their names in 0.1.0

__all__ = [
    "ContextNotSerializable",
    "ContextStays",
    "DatabaseRefused",
    "DeclarationError",
    "DeliveryLost",
    "DispatchError",
    "DriverOptionStays",
    "DuplicateHandler",
    "EmitError",
    "EntityError",
    "EntityVanished",
    "HandlersFailed",
    "InvalidEntity",
    "LeftElsewhere",
    "NitroError",
    "NoDatabase",
    "NoDispatcher",
    "NotACondition",
    "NotATable",
    "NotAccepted",
    "NotLoaded",
    "NotOffloadable",
    "NotSaved",
    "NotTracked",
    "OpenElsewhere",
    "OptionConflict",
    "OptionNotSerializable",
    "OptionStays",
    "OutboxElsewhere",
    "OutboxError",
    "OutboxOutdated",
    "PayloadError",
    "PayloadUnreadable",
    "PoolStalls",
    "SettingError",
    "SignatureRefused",
    "TransactionError",
    "UnknownField",
    "UnknownOption",
    "WrongThread",
]
