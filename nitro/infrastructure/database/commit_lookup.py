"""Lookup of the commit that an emit waits for, among the sessions of the instances that it passes."""

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
    """Returns the commit that the values of an emit belong to, or None.

    It is the commit of the open `transaction()`, else of the user's session that the instances are attached to. Such
    a session counts only if it has work to commit (`has_work_to_commit`).

    Args:
        values: the values of the emit; mapped instances are found in them at any depth.
        flush: whether the caller writes rows in the session. Pending instances are then flushed first, so that they
            have their ids. A session that has only read then counts too, if its connection was given to it with an
            open transaction.
        reading: whether to fall back on a session that is in a transaction and has only read.

    Raises:
        TransactionError: the instances are in sessions of two databases, or in two sessions that both write; or an
            instance has no primary key yet, and its session cannot be flushed here.
        OpenElsewhere: the commit is that of a `transaction()` of another thread.
    """
    transaction, attached = current_transaction(), attached_states(values)
    block_session = None if transaction is None else transaction.session
    candidates = [session for session in attached if session is block_session or _takes_part(session, flush)]
    if not candidates or any(map(is_block_session, candidates)):
        transaction_to_join()
    if block_session is None and not candidates:
        return commits_of(reader) if reading and (reader := _reading_session(attached)) is not None else None
    session = _session_to_await(block_session, candidates, attached)
    states = attached.get(session, [])
    commits_of(session).emitted_mappers.update((state.mapper, None) for state in states)
    if flush:
        _flush_pending(session, states)
    return commits_of(session) if transaction is None else transaction


def _takes_part(session: Session, flush: bool) -> bool:
    """Whether the commit of a session is one that an emit may wait for."""
    return has_work_to_commit(session) or (flush and has_outer_transaction(session) and _is_on_nitro_database(session))


def _reading_session(attached: AttachedStates) -> Session | None:
    """Returns the first session that is in a transaction, or None."""
    return next((session for session in attached if session.in_transaction()), None)


def _is_on_nitro_database(session: Session) -> bool:
    bind = bind_of(session)
    return bind is not None and is_same_database(bind.engine, engine())


async def flush_async(values: Iterable[object]) -> None:
    """Flushes pending instances that are in an `AsyncSession`, and refreshes their expired columns."""
    for session, states in attached_states(values).items():
        if not must_await(session) or is_flushing(session):
            continue
        async_session = async_session_of(session)
        if any(state.pending for state in states):
            await async_session.flush()
        for state in states:
            if expired_columns := state.expired_attributes.intersection(state.mapper.column_attrs.keys()):
                # InvalidRequestError: the row is gone. The codec reports that when it writes the instance.
                with suppress(InvalidRequestError):
                    await async_session.refresh(state.obj(), expired_columns)


def _session_to_await(
    block_session: Session | None, candidates: Sequence[Session], attached: AttachedStates
) -> Session:
    """Returns the session to wait for: that of the open `transaction()`, else the candidate that writes.

    Raises:
        TransactionError: another candidate writes too, or is on another database.
    """
    chosen = block_session or next(filter(has_writes, candidates), candidates[0])
    for other in candidates:
        if other is not chosen:
            _check_same_database(chosen, other, attached)
            if has_writes(other):
                raise TransactionError(
                    _two_commits_message(block_session is not None, attached.get(chosen, []), attached[other])
                )
    return chosen


def _check_same_database(session: Session, other_session: Session, attached: AttachedStates) -> None:
    first, second = (_engine_of(each, attached.get(each, [])) for each in (session, other_session))
    if first is not None and second is not None and not is_same_database(first, second):
        urls = sorted(engine.url.render_as_string() for engine in (first, second))
        raise TransactionError(f"one emit cannot wait for the commits of two databases: {', '.join(urls)}")


def _engine_of(session: Session, states: States) -> Engine | None:
    bind = bind_of(session, states[0].mapper if states else None)
    return None if bind is None else bind.engine


def _two_commits_message(in_block: bool, chosen_states: States, other_states: States) -> str:
    first_commit = "an open transaction()" if in_block else f"a session that writes ({_names_of(chosen_states)})"
    return (
        f"one emit cannot wait for two commits: of {first_commit}, "
        f"and of another session that writes ({_names_of(other_states)}); "
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


def _check_primary_keys(pending: Iterable[InstanceState[object]], reason: str) -> None:
    for state in pending:
        if None in state.mapper.primary_key_from_instance(state.obj()):
            raise TransactionError(f"{state.mapper.class_.__name__} has no primary key yet, and {reason}")
