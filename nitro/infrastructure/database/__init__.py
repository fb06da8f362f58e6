"""The database of this process: its engine, its tables, `transaction()`, and sessions of the user's own."""

from __future__ import annotations

from nitro.infrastructure.database.binds import connection_of, must_await
from nitro.infrastructure.database.connections import (
    create_tables,
    creating,
    engine,
    has_own_engine,
    place_of,
    reset,
    use_engine,
)
from nitro.infrastructure.database.joining import commit_for, flush_awaited
from nitro.infrastructure.database.sessions import Commits, commits_of, ends_elsewhere, in_own_transaction
from nitro.infrastructure.database.statements import Prepared
from nitro.infrastructure.database.tables import (
    create_missing,
    current,
    encodings,
    ensure_tables,
    own,
    place_in,
    upgrades,
)
from nitro.infrastructure.database.transactions import joined, reading, transaction, write_with, writing, writing_once
from nitro.infrastructure.database.unit_of_work import Transaction, current_transaction, is_of_block

__all__ = [
    "Commits",
    "Prepared",
    "Transaction",
    "commit_for",
    "commits_of",
    "connection_of",
    "create_missing",
    "create_tables",
    "creating",
    "current",
    "current_transaction",
    "encodings",
    "ends_elsewhere",
    "engine",
    "ensure_tables",
    "flush_awaited",
    "has_own_engine",
    "in_own_transaction",
    "is_of_block",
    "joined",
    "must_await",
    "own",
    "place_in",
    "place_of",
    "reading",
    "reset",
    "transaction",
    "upgrades",
    "use_engine",
    "write_with",
    "writing",
    "writing_once",
]
