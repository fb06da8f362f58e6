"""Offloads leave after the commit and never before it: contract section 7."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Emission, Event, emit, emit_async, on
from support import faults, outbox

Sent = Callable[..., list[Any]]


class Parcel(Entity, table=True):
    __tablename__ = "offload_parcel"

    status: str = "draft"


@pytest.fixture(autouse=True)
def handler(evt: Event, app: Celery) -> Any:
    """An offloaded handler."""
    return on(evt, offload=True, name="shop.handler")(lambda sender: None)


def test_nothing_leaves_before_the_commit(evt: Event, sent: Sent) -> None:
    """Ids are known inside the block; the message leaves after its commit."""
    with transaction():
        emission = emit(evt, Parcel(id="p1").save())
        assert sent() == []
    assert [message.id for message in sent()] == list(emission.offloaded.values())


def test_rollback_publishes_nothing(evt: Event, sent: Sent) -> None:
    """A rollback leaves neither a row nor a message."""
    with pytest.raises(ValueError, match="changed my mind"), transaction():
        emit(evt, Parcel(id="p1").save())
        raise ValueError("changed my mind")
    assert sent() == []
    assert Parcel.get("p1") is None


def test_rollback_of_a_savepoint_publishes_only_the_outer(evt: Event, sent: Sent) -> None:
    """A rolled-back savepoint drops its own saves and emits; the outer emit leaves."""
    with transaction():
        emit(evt, Parcel(id="outer").save())
        with pytest.raises(ValueError, match="inner"), transaction():
            emit(evt, Parcel(id="inner").save())
            raise ValueError("inner")
    assert [message.payload.sender.id for message in sent()] == ["outer"]


def test_inner_block_waits_for_the_outermost_commit(evt: Event, sent: Sent) -> None:
    """An emit of an inner block leaves after the outermost commit."""
    with transaction():
        with transaction():
            emit(evt, "ada")
        assert sent() == []
    assert len(sent()) == 1


def test_outside_of_a_transaction_it_leaves_at_once(evt: Event, sent: Sent) -> None:
    """Without a transaction, the message leaves during the emit."""
    emit(evt, Parcel(id="p1").save())
    assert len(sent()) == 1


def test_payload_error_is_raised_inside_the_transaction(evt: Event, sent: Sent) -> None:
    """A payload error is raised inside the block and rolls it back."""
    with pytest.raises(TypeError), transaction():
        Parcel(id="p1").save()
        emit(evt, object())
    assert Parcel.get("p1") is None
    assert sent() == []


def test_snapshot_in_a_transaction_is_that_of_the_emit(evt: Event, sent: Sent) -> None:
    """The handler gets the entity as it was at the emit, not as it was at the commit."""
    with transaction():
        parcel = Parcel(id="p1", status="placed").save()
        emit(evt, parcel)
        parcel.status = "later"
        parcel.save()
    assert sent()[0].payload.sender.status == "placed"


def test_inline_handlers_run_before_the_commit(evt: Event, sent: Sent) -> None:
    """Entities that an inline handler saves are rolled back with the transaction."""
    evt.connect(lambda sender: Parcel(id="by-handler").save() and None)
    with pytest.raises(ValueError, match="too late"), transaction():
        emit(evt, "ada")
        raise ValueError("too late")
    assert Parcel.get("by-handler") is None


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_emit_async_inside_a_transaction(evt: Event, sent: Sent, end: str) -> None:
    """`emit_async` joins the transaction like `emit`."""

    async def main() -> None:
        with transaction():
            await emit_async(evt, Parcel(id="p1").save())
            assert sent() == []
            if end == "rollback":
                raise ValueError("changed my mind")

    if end == "commit":
        asyncio.run(main())
    else:
        with pytest.raises(ValueError, match="changed my mind"):
            asyncio.run(main())
    assert len(sent()) == (1 if end == "commit" else 0)


def test_several_emits_of_a_transaction_keep_their_order(evt: Event, sent: Sent) -> None:
    """Messages of a transaction leave in the order of their emits."""
    with transaction():
        emissions: list[Emission] = [emit(evt, number) for number in range(3)]
    assert [message.id for message in sent()] == [emission.offloaded["shop.handler"] for emission in emissions]


def refuse_connection(*args: Any, **kwargs: Any) -> None:
    """Raises the error of a broker that cannot be reached."""
    raise OperationalError("connection refused")


def test_after_a_commit_nothing_is_raised(evt: Event, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable broker raises nothing after the commit; data and emission are stored."""
    monkeypatch.setattr(app.tasks["shop.handler"], "apply_async", refuse_connection)
    with transaction():
        emission = emit(evt, Parcel(id="p1").save())
    assert Parcel.get("p1") is not None
    assert [entry.id for entry in outbox.deliveries()] == list(emission.offloaded.values())


def test_what_cannot_even_be_stored_after_a_commit_is_logged(
    evt: Event, app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An ERROR names the handler, because no caller is left to raise to."""
    on(evt, offload={"delivery": "broker"}, name="shop.untracked")(lambda sender: None)
    monkeypatch.setattr(app.tasks["shop.untracked"], "apply_async", refuse_connection)
    faults.fail_storing_untracked(monkeypatch, OperationalError("database is away"))
    with transaction():
        emit(evt, Parcel(id="p1").save())
    assert Parcel.get("p1") is not None
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["handler shop.untracked was not dispatched after its commit"]


def test_one_failed_batch_does_not_keep_the_next_from_leaving(
    evt: Event, app: Celery, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each emission of a transaction is published separately, and the failed one is retried."""
    task = app.tasks["shop.handler"]
    apply_async, calls = task.apply_async, []

    def fail_first(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        if len(calls) == 1:
            raise LookupError("a bug")
        return apply_async(*args, **kwargs)

    monkeypatch.setattr(task, "apply_async", fail_first)
    with transaction():
        emit(evt, "first")
        emit(evt, "second")
    assert [message.payload.sender for message in sent()] == ["second"]
    assert sorted(entry.state for entry in outbox.deliveries()) == ["queued", "waiting"]
