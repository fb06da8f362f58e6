"""The outbox as dispatch sees it: it writes rows in the user's transaction and starts a relay for unsent messages."""

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
    """Whether emitters and workers of this app share a database."""
    return is_embedded(app) or is_db_set() or has_user_engine()


class OutboxWriter:
    """Stores deliveries in the database of this process."""

    def store(
        self, app: Celery, messages: Sequence[TaskMessage], commit: DatabaseCommit | None, *, queued: bool
    ) -> list[TaskMessage]:
        """Writes a row for each message, in the transaction that `commit` ends, or in one of its own without `commit`.

        Args:
            queued: whether the broker can be reached, so that the caller publishes.

        Returns:
            The messages that the caller publishes after the commit. A relay publishes the rest.

        Raises:
            NoDatabase: the broker is a server, and no database is set that workers share.
            OutboxOutdated: the tables are missing, or of another version.
            TransactionError: the transaction belongs to another database.
        """
        tracked = [message for message in messages if message.is_tracked]
        if tracked and not has_shared_database(app):
            raise NoDatabase([message.handler for message in tracked], tracked[0].delivery)

        def write(connection: Connection) -> None:
            on_sqlite = connection.dialect.name == "sqlite"  # SQLite may refuse to write in a transaction that has read
            if not on_sqlite:
                check_version(connection)
            inserts.insert_deliveries(connection, app, messages, queued=queued)
            if on_sqlite:
                check_version(connection)

        if commit is not None and has_outer_transaction(commit.session):
            queued = False  # only a relay can see that the outer transaction has committed the row
        if commit is None:
            with write_connection() as connection:
                write(connection)
        else:
            write_in_transaction(commit, write)
        if not queued:
            emitter_relay.start(app)
        return [message for message in messages if rows.is_published_by_caller(message, queued)]

    def can_store(self, text: str) -> bool:
        """Whether the database can store all characters of the text."""
        ensure_current()
        return to_storable(text) == text

    def requeue_unconfirmed(self, batch: Batch) -> None:
        """Requeues messages that the broker has not confirmed, for a relay; stores the queues actually used."""
        pending.store_actual_queues(batch.messages)
        tracked = [message for message in batch.unconfirmed if message.is_tracked]
        if tracked and batch.error is not None:
            pending.requeue_unconfirmed(tracked, batch.error, batch.status)
            emitter_relay.start(batch.app)

    def cancel(self, emission: str, handler: str | None) -> int:
        """Cancels deliveries that have not started, and returns their number."""
        return operations.cancel(emission, handler)
