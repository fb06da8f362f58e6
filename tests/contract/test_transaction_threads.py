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
from support import outbox

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


def on_other_thread(work: Callable[[], Any]) -> Any:
    """Runs the function on another thread with a copy of this context."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, work).result()


def stored() -> tuple[list[str], int]:
    """Returns the ids of the vouchers and the number of deliveries."""
    with database.engine().connect() as connection:
        return sorted(connection.scalars(select(Voucher.id))), outbox.count_deliveries(connection)


WRITES = {
    "save": lambda: Voucher(id="v1").save(),
    "create": lambda: Voucher.create(id="v1"),
    "delete": lambda: Voucher(id="v0").delete(),
    "delete_where": lambda: Voucher.delete_where(Voucher.id == "v0"),
    "cancel": lambda: cancel("nothing"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_on_another_thread_raises(write: Callable[[], Any]) -> None:
    """A write on another thread raises, because it would survive a rollback of the transaction."""
    Voucher(id="v0").save()
    with transaction(), pytest.raises(TransactionError, match=r"with transaction\(\):"):
        on_other_thread(write)
    assert stored() == (["v0"], 0)


def test_a_write_in_to_thread_raises_and_the_block_rolls_back() -> None:
    """A write in `asyncio.to_thread` raises, and the block is rolled back."""

    async def place() -> None:
        async with transaction():
            Voucher(id="v0").save()
            await asyncio.to_thread(Voucher(id="v1").save)

    with pytest.raises(TransactionError, match="another thread"):
        asyncio.run(place())
    assert stored() == ([], 0)


def test_saving_what_is_in_the_session_of_the_block_raises_elsewhere() -> None:
    """Saving or deleting an object of the block's session raises on another thread."""
    with transaction():
        voucher = Voucher(id="v0").save()
        voucher.note = "changed"
        with pytest.raises(TransactionError, match="another thread"):
            on_other_thread(voucher.save)
        with pytest.raises(TransactionError, match="another thread"):
            on_other_thread(voucher.delete)


@pytest.mark.parametrize("delivery", ["at-most-once", "broker", "at-least-once", "exactly-once"])
def test_an_offloading_emit_on_another_thread_raises(evt: Event, sent: Sent, delivery: str) -> None:
    """An emit with an offloaded handler raises on another thread, for every delivery."""
    other = Event("other")
    on(other, offload={"delivery": delivery}, name="shop.other")(lambda sender: None)
    with transaction(), pytest.raises(TransactionError, match="another thread"):
        on_other_thread(lambda: emit(other, "ada"))
    with transaction(), pytest.raises(TransactionError, match="another thread"):
        on_other_thread(lambda: asyncio.run(emit_async(other, "ada")))
    assert (sent(), stored()) == ([], ([], 0))


def test_an_emit_about_what_is_in_the_session_of_the_block_raises_elsewhere(evt: Event, sent: Sent) -> None:
    """An emit about an object of the block's session raises on another thread."""
    with transaction():
        voucher = Voucher(id="v0").save()
        with pytest.raises(TransactionError, match="another thread"):
            on_other_thread(lambda: emit(evt, voucher))
    assert (sent(), stored()) == ([], (["v0"], 0))


def test_an_emit_that_starts_an_async_handler_on_another_thread_raises() -> None:
    """An emit that would start an async handler raises on another thread, because it cannot wait for the commit."""
    other, ran = Event("other"), list[object]()

    @on(other)
    async def tell(sender: object) -> None:
        ran.append(sender)

    with transaction(), pytest.raises(TransactionError, match="another thread"):
        on_other_thread(lambda: emit(other, "ada"))
    assert drain(20)
    assert ran == []


def test_an_emit_with_sync_handlers_only_is_allowed() -> None:
    """An emit with sync handlers is allowed on another thread."""
    other = Event("other")
    on(other, on_error="log")(lambda sender: sender)
    on(other, condition=lambda sender: False, offload=True, name="shop.never")(lambda sender: None)
    with transaction():
        assert on_other_thread(lambda: emit(other, "ada")) == ["ada"]


def test_emit_async_with_async_handlers_only_is_allowed() -> None:
    """`emit_async` with async handlers is allowed on another thread, because it awaits them."""
    other = Event("other")

    @on(other, on_error="log")
    async def tell(sender: object) -> object:
        return sender

    with transaction():
        assert on_other_thread(lambda: asyncio.run(emit_async(other, "ada"))) == ["ada"]


def test_reads_use_a_connection_of_their_own() -> None:
    """Reads on another thread see the committed rows only."""
    Voucher(id="old").save()
    with transaction():
        Voucher(id="new").save()
        assert on_other_thread(lambda: [voucher.id for voucher in Voucher.all()]) == ["old"]
        assert on_other_thread(Voucher.count) == 1
        assert on_other_thread(lambda: Voucher.get("new")) is None


def test_a_block_opened_on_that_thread_is_independent(evt: Event, sent: Sent) -> None:
    """A `transaction()` on another thread commits independently of the block in its context."""

    def place() -> None:
        with transaction():
            emit(evt, Voucher(id="v1").save())

    with pytest.raises(ValueError, match="changed my mind"), transaction():
        on_other_thread(place)
        raise ValueError("changed my mind")
    assert stored() == (["v1"], 1)
    assert len(sent()) == 1


def test_a_session_opened_on_that_thread_is_independent(evt: Event, sent: Sent) -> None:
    """A session on another thread decides about its own emits."""

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
        on_other_thread(place)
        raise ValueError("changed my mind")
    assert stored() == (["v1"], 1)
    assert len(sent()) == 1


def test_an_async_handler_of_an_independent_session_is_independent_too() -> None:
    """An async handler of a session on another thread writes after that session's commit."""
    other = Event("other")

    @on(other)
    async def copy(voucher: Voucher) -> None:
        Voucher(id="copy").save()

    def place() -> None:
        with Session(database.engine(), expire_on_commit=False) as session:
            session.add(voucher := Voucher(id="v1"))
            session.flush()
            emit(other, voucher)
            session.commit()
        assert drain(20)

    with transaction():
        on_other_thread(place)
    assert stored()[0] == ["copy", "v1"]


def test_a_block_that_has_ended_is_not_seen(evt: Event) -> None:
    """A context that was copied in a block writes outside of it once the block has ended."""
    with transaction():
        copied = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(copied.run, lambda: emit(evt, Voucher(id="v1").save())).result()
    assert stored() == (["v1"], 1)


def test_a_thread_without_the_context_is_no_part_of_it(evt: Event) -> None:
    """A thread without the block's context commits by itself."""
    with transaction(), ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: emit(evt, Voucher(id="v1").save())).result()
    assert stored() == (["v1"], 1)


def test_tasks_of_one_loop_share_the_block(evt: Event) -> None:
    """Tasks of the block's loop take part in the block."""

    async def place() -> None:
        async with transaction():
            await asyncio.create_task(emit_async(evt, Voucher(id="v1").save()))
            raise ValueError("changed my mind")

    with pytest.raises(ValueError, match="changed my mind"):
        asyncio.run(place())
    assert stored() == ([], 0)


def test_a_write_in_a_forked_child_raises() -> None:
    """A write in a forked child raises, because the transaction belongs to the parent."""
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


@contextmanager
def block() -> Iterator[None]:
    """Writes in a `transaction()` around a yield, as a dependency or a fixture does."""
    with transaction():
        Voucher(id="v0").save()
        yield


def leave_on_another_thread(manager: Any, error: BaseException | None = None) -> None:
    """Enters and exits a context manager on different threads, as FastAPI does with a `def` dependency."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(contextvars.copy_context().run, manager.__enter__).result()
        second.submit(contextvars.copy_context().run, manager.__exit__, error and type(error), error, None).result()


def test_a_block_left_on_another_thread_rolls_back_and_raises() -> None:
    """A block that is left on another thread is rolled back, and raises an error with the remedy."""
    with pytest.raises(TransactionError, match=r"another thread.*`async def`"):
        leave_on_another_thread(block())
    assert stored() == ([], 0)


def test_what_was_committed_elsewhere_stays(evt: Event) -> None:
    """A write outside of the block stays committed when the block is rolled back."""
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
    """The TransactionError has the exception that left the block as its cause."""
    with pytest.raises(TransactionError) as raised:
        leave_on_another_thread(block(), ValueError("declined"))
    assert isinstance(raised.value.__cause__, ValueError)
    assert stored() == ([], 0)


def test_what_ends_the_program_stays_what_it_is() -> None:
    """A KeyboardInterrupt that leaves a block on another thread propagates, and the block is rolled back."""
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
    """A block that is left in another context of its thread is rolled back and raises."""
    manager = block()
    contextvars.copy_context().run(manager.__enter__)
    with pytest.raises(TransactionError, match="another context"):
        contextvars.copy_context().run(manager.__exit__, None, None, None)
    assert stored() == ([], 0)


def test_a_block_left_on_another_thread_in_its_context_rolls_back_and_raises() -> None:
    """A block that is left on another thread in its own context is rolled back and raises."""
    manager, context = block(), contextvars.copy_context()
    context.run(manager.__enter__)
    with ThreadPoolExecutor(1) as pool, pytest.raises(TransactionError, match="another thread"):
        pool.submit(context.run, manager.__exit__, None, None, None).result()
    assert stored() == ([], 0)


def test_an_inner_block_left_elsewhere_is_undone_alone() -> None:
    """An inner block that is left in another context is rolled back alone, as a savepoint."""
    with transaction():
        Voucher(id="outer").save()
        manager = block()
        manager.__enter__()
        with pytest.raises(TransactionError, match="another context"):
            contextvars.copy_context().run(manager.__exit__, None, None, None)
    assert stored() == (["outer"], 0)


def test_an_adopted_session_left_elsewhere_is_rolled_back() -> None:
    """An adopted session that is left on another thread is rolled back."""

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
    """A block in an async generator that another task closes is rolled back and raises."""

    async def main() -> None:
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

    asyncio.run(main())
    assert stored() == ([], 0)


def test_a_block_opened_after_one_that_was_left_elsewhere_is_as_ever() -> None:
    """A later block works after a block of the thread was left on another one."""

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
    """A forked child that leaves the block does not end the parent's transaction."""
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
    process = fresh_process(program, NITRO_DB_URL=database_server)
    assert process.returncode == 0, process.stderr


def test_the_transaction_of_a_delivery_is_handed_to_its_async_handler(app: Celery, work: Callable[..., Any]) -> None:
    """An async handler writes in its delivery's transaction on the loop's thread; a thread that it starts may not."""
    other, seen = Event("other"), list[object]()

    @on(other, offload={"delivery": "exactly-once", "max_retries": 0, "ignore_result": False}, name="shop.other")
    async def keep(sender: object) -> None:
        Voucher(id="v1").save()
        delivery = current_delivery()
        seen.append(delivery is not None and delivery.transaction is not None)
        try:
            await asyncio.to_thread(Voucher(id="v2").save)
        except TransactionError as error:
            seen.append(type(error).__mro__[1])

    outcomes = work(app)
    assert outcomes.only(emit(other, "ada")) is None
    assert seen == [True, TransactionError]
    assert stored()[0] == ["v1"]


def test_a_handler_called_on_a_thread_that_only_sees_the_block_does_not_take_it(app: Celery) -> None:
    """Calling an async handler's task passes a transaction only from the thread that opened it."""
    other, seen = Event("other"), list[object]()

    @on(other, offload=True, name="shop.other")
    async def keep(sender: object) -> None:
        with pytest.raises(TransactionError):
            Voucher(id="v1").save()
        seen.append(sender)

    with transaction():
        on_other_thread(lambda: keep.task("ada"))
        Voucher(id="v2").save()
    assert seen == ["ada"]
    assert stored()[0] == ["v2"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="threads do not inherit a context")
def test_a_thread_that_inherits_the_context_raises() -> None:
    """A write on a thread that inherits the context raises."""
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
