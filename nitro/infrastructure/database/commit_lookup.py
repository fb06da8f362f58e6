"""Joining: the commit that an emit waits for, of the sessions that its instances are attached to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from sqlalchemy import Engine
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import InstanceState, Session

from nitro.errors import TransactionError
from nitro.infrastructure.database.binds import async_session_of, bind_of, is_flushing, must_await
from nitro.infrastructure.database.connections import engine, is_same_database
from nitro.infrastructure.database.mapped_instances import States, attached_states
from nitro.infrastructure.database.sessions import (
    Commits,
    commits_of,
    has_outer_transaction,
    has_work_to_commit,
    has_writes,
)
from nitro.infrastructure.database.unit_of_work import (
    Transaction,
    current_transaction,
    is_block_session,
    transaction_to_join,
)

AttachedStates = dict[Session, States]


def commit_for(values: Iterable[object], *, flush: bool = False, reading: bool = False) -> Transaction | Commits | None:
    """The commit that belongs to these values: of the open `transaction()`, else of a user's session they are in.

    A session counts when somebody will want to commit it (`has_work_to_commit`).

    Args:
        values: mapped instances are found in them at any depth.
        flush: something is to be written in it: its pending instances first, so that they have their ids, and also
            where it has only read, but in a transaction that was open on its connection before.
        reading: if there is none, take one that is open and has only read.

    Raises:
        TransactionError: they are in sessions of two databases, or in two sessions that both have something to write;
            or an instance has no primary key yet, and its session cannot be flushed here.
        OpenElsewhere: it is the commit of a `transaction()` that belongs to another thread.
    """
    current, attached = current_transaction(), attached_states(values)
    own = None if current is None else current.session
    taking_part = [session for session in attached if session is own or _takes_part(session, flush)]
    if not taking_part or any(map(is_block_session, taking_part)):
        transaction_to_join()
    if own is None and not taking_part:
        return commits_of(reader) if reading and (reader := _reading_session(attached)) is not None else None
    session = _session_to_await(own, taking_part, attached)
    states = attached.get(session, [])
    commits_of(session).emitted_mappers.update((state.mapper, None) for state in states)
    if flush:
        _flush_pending(session, states)
    return commits_of(session) if current is None else current


def _takes_part(session: Session, writing: bool) -> bool:
    return has_work_to_commit(session) or (
        writing and has_outer_transaction(session) and _is_on_nitro_database(session)
    )


def _reading_session(attached: AttachedStates) -> Session | None:
    return next((session for session in attached if session.in_transaction()), None)


def _is_on_nitro_database(session: Session) -> bool:
    bind = bind_of(session)
    return bind is not None and is_same_database(bind.engine, engine())


async def flush_async(values: Iterable[object]) -> None:
    """Write the pending instances among these values that are in an `AsyncSession`, and read expired columns there."""
    for session, states in attached_states(values).items():
        if not must_await(session) or is_flushing(session):
            continue
        owner = async_session_of(session)
        if any(state.pending for state in states):
            await owner.flush()
        for state in states:
            if expired := state.expired_attributes.intersection(state.mapper.column_attrs.keys()):
                with suppress(InvalidRequestError):  # its row has vanished, which is told where it is to travel
                    await owner.refresh(state.obj(), expired)


def _session_to_await(own: Session | None, taking_part: Sequence[Session], attached: AttachedStates) -> Session:
    """The session to wait for: of the open `transaction()`, else the one that writes; the others only read."""
    chosen = own or next(filter(has_writes, taking_part), taking_part[0])
    for other in taking_part:
        if other is not chosen:
            _check_same_database(chosen, other, attached)
            if has_writes(other):
                raise TransactionError(_two_commits_message(own is not None, attached.get(chosen, []), attached[other]))
    return chosen


def _check_same_database(one: Session, other: Session, attached: AttachedStates) -> None:
    engines = [_engine_of(session, attached.get(session, [])) for session in (one, other)]
    first, second = engines
    if first is not None and second is not None and not is_same_database(first, second):
        urls = sorted(engine.url.render_as_string() for engine in (first, second))
        raise TransactionError(f"one emit cannot wait for the commits of two databases: {', '.join(urls)}")


def _engine_of(session: Session, states: States) -> Engine | None:
    bind = bind_of(session, states[0].mapper if states else None)
    return None if bind is None else bind.engine


def _two_commits_message(in_block: bool, mine: States, theirs: States) -> str:
    where = "an open transaction()" if in_block else f"a session that writes ({_names_of(mine)})"
    return (
        f"one emit cannot wait for two commits: of {where}, and of another session that writes ({_names_of(theirs)}); "
        f"add all of them to one session, and emit in `transaction(session)` or outside of any transaction()"
    )


def _names_of(states: States) -> str:
    return ", ".join(sorted({state.mapper.class_.__name__ for state in states}))


def _flush_pending(session: Session, states: States) -> None:
    pending = [state for state in states if state.pending]
    if not pending:
        return
    if must_await(session):
        _check_primary_keys(
            pending, "emit() cannot flush an AsyncSession: `await session.flush()` first, or use emit_async()"
        )
    elif is_flushing(session):
        _check_primary_keys(pending, "its session is being flushed: emit when that is over, or in `after_insert`")
    else:
        session.flush()


def _check_primary_keys(pending: Iterable[InstanceState[object]], why: str) -> None:
    for state in pending:
        if None in state.mapper.primary_key_from_instance(state.obj()):
            raise TransactionError(f"{state.mapper.class_.__name__} has no primary key yet, and {why}")
