"""The database of this process: its engine, its tables, `transaction()`, and the user's own sessions."""

from __future__ import annotations

from nitro.infrastructure.database.binds import connection_of, must_await
from nitro.infrastructure.database.commit_lookup import commit_for, flush_async
from nitro.infrastructure.database.connections import (
    create_tables,
    database_identity,
    engine,
    has_user_engine,
    reset,
    table_creation_connection,
    use_engine,
)
from nitro.infrastructure.database.sessions import Commits, commits_of, has_outer_transaction, has_work_to_commit
from nitro.infrastructure.database.statements import CachedStatement
from nitro.infrastructure.database.tables import (
    create_missing,
    current_pools,
    ensure_tables,
    nitro_metadata,
    set_schema,
    table_upgrades,
    text_encodings,
)
from nitro.infrastructure.database.transactions import (
    autocommit_connection,
    read_session,
    transaction,
    write_connection,
    write_in_transaction,
    write_session,
)
from nitro.infrastructure.database.unit_of_work import Transaction, current_transaction, is_block_session

__all__ = [
    "CachedStatement",
    "Commits",
    "Transaction",
    "autocommit_connection",
    "commit_for",
    "commits_of",
    "connection_of",
    "create_missing",
    "create_tables",
    "current_pools",
    "current_transaction",
    "database_identity",
    "engine",
    "ensure_tables",
    "flush_async",
    "has_outer_transaction",
    "has_user_engine",
    "has_work_to_commit",
    "is_block_session",
    "must_await",
    "nitro_metadata",
    "read_session",
    "reset",
    "set_schema",
    "table_creation_connection",
    "table_upgrades",
    "text_encodings",
    "transaction",
    "use_engine",
    "write_connection",
    "write_in_transaction",
    "write_session",
]
