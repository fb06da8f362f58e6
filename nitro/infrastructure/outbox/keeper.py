"""Keeper: the outbox as dispatch sees it: writes rows where the user writes, and has a relay take what is put back."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery
from sqlalchemy import Connection

from nitro.errors import NoDatabase
from nitro.infrastructure.database import ends_elsewhere, has_own_engine, write_with, writing
from nitro.infrastructure.offload.batch import Batch
from nitro.infrastructure.offload.broker import is_embedded
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.offload.tracking import Commit
from nitro.infrastructure.outbox import backlog, inserts, registry, rows
from nitro.infrastructure.outbox.relay import emitters
from nitro.infrastructure.outbox.texts import storable
from nitro.infrastructure.outbox.versions import check, ensure_current
from nitro.settings import db_given


def tracks(app: Celery) -> bool:
    """Whether there is a database that emitters and workers of this app share."""
    return is_embedded(app) or db_given() or has_own_engine()


class Keeper:
    """Keeps deliveries in the database of this process."""

    def keep(self, app: Celery, parcels: Sequence[Parcel], commit: Commit | None, *, queued: bool) -> list[Parcel]:
        """Write a row for each in the transaction that `commit` ends, else in one of its own.

        Returns:
            Those that whoever writes them is to publish after the commit; a relay publishes the others.

        Raises:
            NoDatabase: the broker is a server, and no database is set that workers share.
            OutboxOutdated: the tables are not there, or of another version.
            TransactionError: the transaction is one of another database.
        """
        tracked = [parcel for parcel in parcels if parcel.tracked]
        if tracked and not tracks(app):
            raise NoDatabase([parcel.handler for parcel in tracked], tracked[0].promise)

        def write(connection: Connection) -> None:
            on_sqlite = connection.dialect.name == "sqlite"  # which may refuse to write after it has been read
            if not on_sqlite:
                check(connection)
            inserts.insert(connection, app, parcels, queued=queued)
            if on_sqlite:
                check(connection)

        if commit is not None and ends_elsewhere(commit.session):
            queued = False  # a relay sees the row as soon as it is really there
        if commit is None:
            with writing() as connection:
                write(connection)
        else:
            write_with(commit, write)
        if not queued:
            emitters.start(app)
        return [parcel for parcel in parcels if rows.leaves_at_once(parcel, queued)]

    def can_store(self, text: str) -> bool:
        """Whether the database has all of its characters."""
        ensure_current()
        return storable(text) == text

    def put_back(self, batch: Batch) -> None:
        """Have a relay publish what was kept as queued and has not surely left; note queues other than foreseen."""
        backlog.relocate(batch.parcels)
        tracked = [parcel for parcel in batch.open if parcel.tracked]
        if tracked and batch.error is not None:
            backlog.put_back(tracked, batch.error, batch.fate)
            emitters.start(batch.app)

    def cancel(self, emission: str, handler: str | None) -> int:
        """Cancel what has not started; how many."""
        return registry.cancel(emission, handler)
