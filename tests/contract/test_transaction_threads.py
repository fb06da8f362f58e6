"""A `transaction()` and the threads, contexts and processes that can see it: contract section 7."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import Session

from nitro import current_delivery
from nitro.domain.entities.base_entity import Entity
from nitro.errors import NitroError, TransactionError
from nitro.infrastructure import database
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, drain, emit, emit_async, on
from nitro.infrastructure.offload import cancel
from nitro.infrastructure.outbox.schema import deliveries

Sent = Callable[..., list[Any]]


class Voucher(Entity, table=True):
    __tablename__ = "threads_voucher"

    note: str = ""


@pytest.fixture(autouse=True)
def handler(evt: Event, app: Celery) -> Any:
    """An offloaded handler."""
    handler = on(evt, offload=True, name="shop.handler")(lambda sender, **kwargs: None)
    database.create_tables()
    return handler


def beside(work: Callable[[], Any]) -> Any:
    """Run it on another thread with a copy of this context."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, work).result()


def stored() -> tuple[list[str], int]:
    """The ids of the vouchers, and how many deliveries the outbox has."""
    with database.engine().connect() as connection:
        return sorted(connection.scalars(select(Voucher.id))), len(connection.execute(select(deliveries.c.id)).all())


# A write, and an emit that offloads


WRITES = {
    "save": lambda: Voucher(id="v1").save(),
    "create": lambda: Voucher.create(id="v1"),
    "delete": lambda: Voucher(id="v0").delete(),
    "delete_where": lambda: Voucher.delete_where(Voucher.id == "v0"),
    "cancel": lambda: cancel("nothing"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_on_another_thread_raises(write: Callable[[], Any]) -> None:
    """It could not be part of the transaction, and would stay after its rollback."""
    Voucher(id="v0").save()
    with transaction(), pytest.raises(TransactionError, match=r"with transaction\(\):"):
        beside(write)
    assert stored() == (["v0"], 0)


def test_a_write_in_to_thread_raises_and_the_block_rolls_back() -> None:
    """The error leaves the block, so that nothing of it is stored."""

    async def place() -> None:
        async with transaction():
            Voucher(id="v0").save()
            await asyncio.to_thread(Voucher(id="v1").save)

    with pytest.raises(TransactionError, match="another thread"):
        asyncio.run(place())
    assert stored() == ([], 0)


def test_saving_what_is_in_the_session_of_the_block_raises_elsewhere() -> None:
    """The session of one thread is not flushed by another one."""
    with transaction():
        voucher = Voucher(id="v0").save()
        voucher.note = "changed"
        with pytest.raises(TransactionError, match="another thread"):
            beside(voucher.save)
        with pytest.raises(TransactionError, match="another thread"):
            beside(voucher.delete)


@pytest.mark.parametrize("delivery", ["at-most-once", "broker", "at-least-once", "exactly-once"])
def test_an_offloading_emit_on_another_thread_raises(evt: Event, sent: Sent, delivery: str) -> None:
    """Whatever the delivery promises: it would leave although the transaction is rolled back."""
    told = Event("told")
    on(told, offload={"delivery": delivery}, name="shop.told")(lambda sender: None)
    with transaction(), pytest.raises(TransactionError, match="another thread"):
        beside(lambda: emit(told, "ada"))
    with transaction(), pytest.raises(TransactionError, match="another thread"):
        beside(lambda: asyncio.run(emit_async(told, "ada")))
    assert (sent(), stored()) == ([], ([], 0))


def test_an_emit_about_what_is_in_the_session_of_the_block_raises_elsewhere(evt: Event, sent: Sent) -> None:
    """The entity leads to the transaction, which belongs to another thread nevertheless."""
    with transaction():
        voucher = Voucher(id="v0").save()
        with pytest.raises(TransactionError, match="another thread"):
            beside(lambda: emit(evt, voucher))
    assert (sent(), stored()) == ([], (["v0"], 0))


def test_an_emit_that_starts_an_async_handler_on_another_thread_raises() -> None:
    """That handler starts after the commit, which this thread cannot wait for."""
    told, ran = Event("told"), list[object]()

    @on(told)
    async def tell(sender: object) -> None:
        ran.append(sender)

    with transaction(), pytest.raises(TransactionError, match="another thread"):
        beside(lambda: emit(told, "ada"))
    assert drain(20)
    assert ran == []


# What stays allowed


def test_an_emit_with_sync_handlers_only_is_allowed() -> None:
    """They run there and then."""
    told = Event("told")
    on(told, on_error="log")(lambda sender: sender)
    on(told, condition=lambda sender: False, offload=True, name="shop.never")(lambda sender: None)
    with transaction():
        assert beside(lambda: emit(told, "ada")) == ["ada"]


def test_emit_async_with_async_handlers_only_is_allowed() -> None:
    """They are awaited, so that nothing has to wait for a commit."""
    told = Event("told")

    @on(told, on_error="log")
    async def tell(sender: object) -> object:
        return sender

    with transaction():
        assert beside(lambda: asyncio.run(emit_async(told, "ada"))) == ["ada"]


def test_reads_use_a_connection_of_their_own() -> None:
    """They see what is committed, and nothing of the open transaction."""
    Voucher(id="old").save()
    with transaction():
        Voucher(id="new").save()
        assert beside(lambda: [found.id for found in Voucher.all()]) == ["old"]
        assert beside(Voucher.count) == 1
        assert beside(lambda: Voucher.get("new")) is None


def test_a_block_opened_on_that_thread_is_independent(evt: Event, sent: Sent) -> None:
    """It commits although the one that its context shows is rolled back."""

    def place() -> None:
        with transaction():
            emit(evt, Voucher(id="v1").save())

    with pytest.raises(ValueError, match="changed my mind"), transaction():
        beside(place)
        raise ValueError("changed my mind")
    assert stored() == (["v1"], 1)
    assert len(sent()) == 1


def test_a_session_opened_on_that_thread_is_independent(evt: Event, sent: Sent) -> None:
    """Its own commit decides about the emit."""

    def place() -> None:
        with Session(database.engine()) as session:
            voucher = Voucher(id="v1")
            session.add(voucher)
            session.flush()
            emit(evt, voucher)
            session.commit()
            session.add(dropped := Voucher(id="v2"))
            session.flush()
            emit(evt, dropped)
            session.rollback()

    with pytest.raises(ValueError, match="changed my mind"), transaction():
        beside(place)
        raise ValueError("changed my mind")
    assert stored() == (["v1"], 1)
    assert len(sent()) == 1


def test_an_async_handler_of_an_independent_session_is_independent_too() -> None:
    """After the commit of that session it writes as outside of any transaction."""
    told = Event("told")

    @on(told)
    async def copy(voucher: Voucher) -> None:
        Voucher(id="copy").save()

    def place() -> None:
        with Session(database.engine(), expire_on_commit=False) as session:
            session.add(voucher := Voucher(id="v1"))
            session.flush()
            emit(told, voucher)
            session.commit()
        assert drain(20)

    with transaction():
        beside(place)
    assert stored()[0] == ["copy", "v1"]


def test_a_block_that_has_ended_is_not_seen(evt: Event) -> None:
    """A context that was copied inside it writes as outside of any transaction."""
    with transaction():
        copied = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(copied.run, lambda: emit(evt, Voucher(id="v1").save())).result()
    assert stored() == (["v1"], 1)


def test_a_thread_without_the_context_is_no_part_of_it(evt: Event) -> None:
    """It commits by itself, as ever."""
    with transaction(), ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: emit(evt, Voucher(id="v1").save())).result()
    assert stored() == (["v1"], 1)


def test_tasks_of_one_loop_share_the_block(evt: Event) -> None:
    """They run on its thread."""

    async def place() -> None:
        async with transaction():
            await asyncio.create_task(emit_async(evt, Voucher(id="v1").save()))
            raise ValueError("changed my mind")

    with pytest.raises(ValueError, match="changed my mind"):
        asyncio.run(place())
    assert stored() == ([], 0)


# Processes


def test_a_write_in_a_forked_child_raises() -> None:
    """The child has the context of its parent, and no part in its transaction."""
    with transaction():
        child = os.fork()
        if child == 0:
            try:
                Voucher(id="v1").save()
            except TransactionError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    assert stored() == ([], 0)


# Where a block is left


@contextmanager
def block() -> Iterator[None]:
    """As a dependency or a fixture has it."""
    with transaction():
        Voucher(id="v0").save()
        yield


def leave_on_another_thread(manager: Any, error: BaseException | None = None) -> None:
    """Enter it and leave it, each on a thread of its own, as FastAPI does with a `def` dependency."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(contextvars.copy_context().run, manager.__enter__).result()
        second.submit(contextvars.copy_context().run, manager.__exit__, error and type(error), error, None).result()


def test_a_block_left_on_another_thread_rolls_back_and_raises() -> None:
    """It says what to do instead."""
    with pytest.raises(TransactionError, match=r"another thread.*`async def`"):
        leave_on_another_thread(block())
    assert stored() == ([], 0)


def test_what_was_committed_elsewhere_stays(evt: Event) -> None:
    """It was committed by itself, where the block was not seen."""
    manager = block()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(contextvars.copy_context().run, manager.__enter__).result()
        with database.engine().connect() as connection:
            assert connection.scalars(select(Voucher.id)).all() == []
        with pytest.raises(TransactionError):
            pool.submit(contextvars.copy_context().run, manager.__exit__, None, None, None).result()
    emit(evt, Voucher(id="v1").save())
    assert stored() == (["v1"], 1)


def test_the_error_that_leaves_it_elsewhere_is_the_cause() -> None:
    """Both are told."""
    with pytest.raises(TransactionError) as raised:
        leave_on_another_thread(block(), ValueError("declined"))
    assert isinstance(raised.value.__cause__, ValueError)
    assert stored() == ([], 0)


def test_what_ends_the_program_stays_what_it_is() -> None:
    """A block that is left elsewhere by it rolls back without a word."""
    with pytest.raises(KeyboardInterrupt):
        leave_on_another_thread(reraising(), KeyboardInterrupt())
    assert stored() == ([], 0)


@contextmanager
def reraising() -> Iterator[None]:
    with transaction():
        Voucher(id="v0").save()
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None


def test_a_block_left_on_its_thread_in_another_context_rolls_back_and_raises() -> None:
    """The code in between has not seen it."""
    manager = block()
    contextvars.copy_context().run(manager.__enter__)
    with pytest.raises(TransactionError, match="another context"):
        contextvars.copy_context().run(manager.__exit__, None, None, None)
    assert stored() == ([], 0)


def test_a_block_left_on_another_thread_in_its_context_rolls_back_and_raises() -> None:
    """A context can go from thread to thread; a transaction cannot."""
    manager, context = block(), contextvars.copy_context()
    context.run(manager.__enter__)
    with ThreadPoolExecutor(1) as pool, pytest.raises(TransactionError, match="another thread"):
        pool.submit(context.run, manager.__exit__, None, None, None).result()
    assert stored() == ([], 0)


def test_an_inner_block_left_elsewhere_is_undone_alone() -> None:
    """It is a savepoint."""
    with transaction():
        Voucher(id="outer").save()
        manager = block()
        manager.__enter__()
        with pytest.raises(TransactionError, match="another context"):
            contextvars.copy_context().run(manager.__exit__, None, None, None)
    assert stored() == (["outer"], 0)


def test_an_adopted_session_left_elsewhere_is_rolled_back() -> None:
    """The session of the user's own that the block has begun."""

    @contextmanager
    def adopted() -> Iterator[None]:
        with Session(database.engine()) as session, transaction(session):
            session.add(Voucher(id="v0"))
            yield

    with pytest.raises(TransactionError, match="another thread"):
        leave_on_another_thread(adopted())
    assert stored() == ([], 0)


@pytest.mark.parametrize("own", [False, True], ids=["nitro", "AsyncSession"])
def test_an_async_generator_that_is_closed_in_another_context_rolls_back_and_raises(own: bool, tmp_path: Path) -> None:
    """As by a task that was not the one that entered the block."""

    async def programme() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'nitro.db'}")

        async def pages() -> AsyncIterator[int]:
            async with AsyncSession(engine) as session, transaction(session if own else None) as opened:
                opened.add(Voucher(id="v0"))
                yield 1

        generator = pages()
        await asyncio.create_task(generator.__anext__())
        with pytest.raises(TransactionError, match="another context"):
            await asyncio.create_task(generator.aclose())
        await engine.dispose()

    asyncio.run(programme())
    assert stored() == ([], 0)


def test_a_block_opened_after_one_that_was_left_elsewhere_is_as_ever() -> None:
    """Nothing is left behind on the thread that entered the other one."""

    def place() -> None:
        manager = block()
        manager.__enter__()
        with ThreadPoolExecutor(1) as pool, pytest.raises(TransactionError):
            pool.submit(manager.__exit__, None, None, None).result()
        with transaction():
            Voucher(id="v1").save()
        Voucher(id="v2").save()

    contextvars.copy_context().run(place)
    assert stored() == (["v1", "v2"], 0)


@pytest.mark.server
@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)"])
def test_a_block_left_in_a_forked_child_leaves_the_parents_transaction_alone(
    ending: str, database_server: str, fresh_process: Callable[..., Any]
) -> None:
    """The connection is the parent's, who commits."""
    program = f"""
        import os, sys
        from nitro import Entity, transaction
        from nitro.errors import TransactionError

        class Coin(Entity, table=True):
            __tablename__ = "threads_coin"

        Coin.init_db()
        Coin.delete_where(Coin.id != "")
        try:
            with transaction():
                Coin(id="c1").save()
                child = os.fork()
                if child:
                    assert os.waitpid(child, 0)[1] == 0
        except TransactionError:
            assert child == 0
            {ending}
        assert child
        assert [coin.id for coin in Coin.all()] == ["c1"]
    """
    done = fresh_process(program, NITRO_DB_URL=database_server)
    assert done.returncode == 0, done.stderr


def test_the_transaction_of_a_delivery_is_handed_to_its_async_handler(app: Celery, work: Callable[..., Any]) -> None:
    """Nitro's own hand-over: the handler writes in it on the loop's thread; a thread that it starts itself may not."""
    told, seen = Event("told"), list[object]()

    @on(told, offload={"delivery": "exactly-once", "max_retries": 0, "ignore_result": False}, name="shop.told")
    async def keep(sender: object) -> None:
        Voucher(id="v1").save()
        delivery = current_delivery()
        seen.append(delivery is not None and delivery.transaction is not None)
        try:
            await asyncio.to_thread(Voucher(id="v2").save)
        except TransactionError as error:
            seen.append(type(error).__mro__[1])

    outcomes = work(app)
    assert outcomes.only(emit(told, "ada")) is None
    assert seen == [True, TransactionError]
    assert stored()[0] == ["v1"]


def test_a_handler_called_on_a_thread_that_only_sees_the_block_does_not_take_it(app: Celery) -> None:
    """Calling the task of an async handler hands a transaction over only if it is this thread's."""
    told, seen = Event("told"), list[object]()

    @on(told, offload=True, name="shop.told")
    async def keep(sender: object) -> None:
        with pytest.raises(TransactionError):
            Voucher(id="v1").save()
        seen.append(sender)

    with transaction():
        beside(lambda: keep.task("ada"))
        Voucher(id="v2").save()
    assert seen == ["ada"]
    assert stored()[0] == ["v2"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="threads do not inherit a context")
def test_a_thread_that_inherits_the_context_raises() -> None:
    """As with `-X thread_inherit_context=1`."""
    raised: list[BaseException] = []

    def write() -> None:
        try:
            Voucher(id="v1").save()
        except NitroError as error:
            raised.append(error)

    with transaction():
        thread = threading.Thread(target=write, context=contextvars.copy_context())  # type: ignore[call-arg]
        thread.start()
        thread.join()
    assert isinstance(raised[0], TransactionError)
