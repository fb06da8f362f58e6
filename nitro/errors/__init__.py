"""Every error that Nitro raises, as one tree.

NitroError
├── SettingError          (ValueError)  a NITRO_* variable has a value that is not allowed
│   └── HandlersFailed                  a module of NITRO_HANDLERS cannot be imported
├── DriverOptionStays     (ValueError)  an option of an asynchronous driver that the synchronous driver lacks
├── DeclarationError      (TypeError)   `@on` or `event` was used in a way that cannot work
│   ├── UnknownOption                   an offload option that does not exist
│   ├── OptionConflict                  a function offloaded twice with different task options
│   ├── DuplicateHandler                two offloaded functions under one name
│   ├── NotOffloadable                  a callable that a worker could not import
│   ├── NotAccepted                     a worker that would refuse the messages of handlers
│   ├── NoDispatcher                    no installed distribution provides a dispatcher, or several do
│   └── DatabaseRefused                 `bind` was given a database that Nitro cannot use
├── EmitError             (TypeError)   `emit` was called in a way that cannot work
│   └── ContextNotSerializable          a context variable that cannot be part of a message
├── PayloadError          (TypeError)   a value cannot be sent to a worker
├── PayloadUnreadable     (ValueError)  a worker cannot decode a payload
│   └── SignatureRefused                a message is not signed with NITRO_SIGNING_KEY
├── EntityError
│   ├── NotATable         (TypeError)   a class without `table=True` was stored
│   ├── InvalidEntity     (ValueError)  `save()` found values that the fields do not allow
│   ├── EntityVanished    (LookupError) the row of an entity does not exist any more
│   ├── NotLoaded         (LookupError) a column that had not been loaded when its entity was emitted
│   ├── NotSaved          (RuntimeError) a relationship with unsaved changes was queried
│   ├── UnknownField      (TypeError)   a query names a field that the entity does not have
│   └── NotACondition     (TypeError)   a query got a value that is no condition
├── WrongThread           (RuntimeError) a blocking wait on the thread of the loop that it waits for
├── TransactionError      (RuntimeError) `transaction()` used in a way that cannot work
│   ├── OpenElsewhere                   a write on a thread that the open transaction does not belong to
│   └── LeftElsewhere                   a block left in another thread or context than it was entered in
├── DispatchError         (RuntimeError) offloaded handlers could not be published
└── OutboxError
    ├── OutboxOutdated  (RuntimeError) the tables are missing, or of another version
    ├── OutboxElsewhere (RuntimeError) the tables are in several schemas, or in another one
    ├── NoDatabase      (RuntimeError) a tracked delivery without a database that workers share
    ├── OptionNotSerializable (TypeError) an option of a message that a row cannot keep
    ├── PoolStalls      (RuntimeError) a pool of greenlets over a driver that stops all of them
    ├── DeliveryLost    (RuntimeError) a run may not close its delivery any more
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
