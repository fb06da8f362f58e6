"""Keeper: the outbox as dispatch sees it: writes rows where the user writes, and has a relay take what is put back."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery
from sqlalchemy import Connection

from nitro.errors import NoDatabase
from nitro.infrastructure.database import has_outer_transaction, has_user_engine, write_connection, write_in_transaction
from nitro.infrastructure.offload.broker import is_embedded
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.ports import DatabaseCommit
from nitro.infrastructure.offload.publishing.queue import Batch
from nitro.infrastructure.outbox import inserts, operations, pending, rows
from nitro.infrastructure.outbox.relay import emitter_relay
from nitro.infrastructure.outbox.texts import to_storable
from nitro.infrastructure.outbox.versions import check_version, ensure_current
from nitro.settings import is_db_set


def has_shared_database(app: Celery) -> bool:
    """Whether there is a database that emitters and workers of this app share."""
    return is_embedded(app) or is_db_set() or has_user_engine()


class OutboxWriter:
    """Keeps deliveries in the database of this process."""

    def store(
        self, app: Celery, messages: Sequence[TaskMessage], commit: DatabaseCommit | None, *, queued: bool
    ) -> list[TaskMessage]:
        """Write a row for each in the transaction that `commit` ends, else in one of its own.

        Returns:
            Those that whoever writes them is to publish after the commit; a relay publishes the others.

        Raises:
            NoDatabase: the broker is a server, and no database is set that workers share.
            OutboxOutdated: the tables are not there, or of another version.
            TransactionError: the transaction is one of another database.
        """
        tracked = [message for message in messages if message.is_tracked]
        if tracked and not has_shared_database(app):
            raise NoDatabase([message.handler for message in tracked], tracked[0].delivery)

        def write(connection: Connection) -> None:
            on_sqlite = connection.dialect.name == "sqlite"  # which may refuse to write after it has been read
            if not on_sqlite:
                check_version(connection)
            inserts.insert_deliveries(connection, app, messages, queued=queued)
            if on_sqlite:
                check_version(connection)

        if commit is not None and has_outer_transaction(commit.session):
            queued = False  # a relay sees the row as soon as it is really there
        if commit is None:
            with write_connection() as connection:
                write(connection)
        else:
            write_in_transaction(commit, write)
        if not queued:
            emitter_relay.start(app)
        return [message for message in messages if rows.is_published_by_caller(message, queued)]

    def can_store(self, text: str) -> bool:
        """Whether the database has all of its characters."""
        ensure_current()
        return to_storable(text) == text

    def requeue_unconfirmed(self, batch: Batch) -> None:
        """Have a relay publish what was kept as queued and has not surely left; note queues other than foreseen."""
        pending.store_actual_queues(batch.messages)
        tracked = [message for message in batch.unconfirmed if message.is_tracked]
        if tracked and batch.error is not None:
            pending.requeue_unconfirmed(tracked, batch.error, batch.status)
            emitter_relay.start(batch.app)

    def cancel(self, emission: str, handler: str | None) -> int:
        """Cancel what has not started; how many."""
        return operations.cancel(emission, handler)
