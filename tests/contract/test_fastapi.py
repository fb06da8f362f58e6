"""A `transaction()` in FastAPI: `def` and `async def` endpoints and dependencies, contract section 7."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import pytest
from celery import Celery
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from sqlalchemy import select
from sqlmodel import Session

from nitro.domain.entities.base_entity import Entity
from nitro.errors import TransactionError
from nitro.infrastructure import database
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, emit, emit_async, on
from support import outbox

Sent = Callable[..., list[Any]]
Scope = pytest.mark.parametrize("scope", ["function", "request"])
ENDPOINTS = pytest.mark.parametrize("endpoint", ["def", "async def"])
DEPENDENCIES = pytest.mark.parametrize("dependency", ["def", "async def"])
ENDS = pytest.mark.parametrize("fails", [False, True], ids=["success", "error after the write"])


class Booking(Entity, table=True):
    __tablename__ = "fastapi_booking"


class Declined(Exception):
    """The error that an endpoint raises after its write."""


@pytest.fixture(autouse=True)
def handler(evt: Event, app: Celery) -> None:
    """An offloaded handler."""
    on(evt, offload=True, name="shop.handler")(lambda sender, **kwargs: None)
    database.create_tables()


def stored() -> tuple[int, int]:
    """Returns the numbers of bookings and of deliveries."""
    with database.engine().connect() as connection:
        return len(connection.execute(select(Booking.id)).all()), outbox.count_deliveries(connection)


def open_block() -> Iterator[None]:
    """A `def` dependency with a transaction around the endpoint."""
    with transaction():
        yield


async def open_async_block() -> AsyncIterator[None]:
    """An `async def` dependency with a transaction around the endpoint."""
    async with transaction():
        yield


def endpoint_of(
    evt: Event, kind: str, fails: bool = False, around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Any:
    """Returns an endpoint that saves, emits and perhaps fails, in a block of its own or in none."""

    def place() -> None:
        with around():
            emit(evt, Booking().save())
            if fails:
                raise Declined

    async def place_async() -> None:
        with around():
            await emit_async(evt, Booking().save())
            if fails:
                raise Declined

    return place if kind == "def" else place_async


def call(endpoint: Callable[..., Any], *dependencies: Any) -> None:
    """Posts to the endpoint and raises its error."""
    api = FastAPI()
    api.post("/", dependencies=list(dependencies))(endpoint)
    with TestClient(api) as client:
        client.post("/").raise_for_status()


# The two patterns that work


@Scope
@ENDS
def test_an_async_dependency_around_an_async_endpoint_is_one_commit(
    evt: Event, sent: Sent, fails: bool, scope: Any
) -> None:
    """Writes of an async endpoint are committed with the block of its async dependency, or not at all."""
    with pytest.raises(Declined) if fails else nullcontext():
        call(endpoint_of(evt, "async def", fails), Depends(open_async_block, scope=scope))
    assert stored() == ((0, 0) if fails else (1, 1))
    assert len(sent()) == stored()[1]


@ENDPOINTS
@ENDS
def test_a_block_inside_the_endpoint_is_one_commit(evt: Event, sent: Sent, endpoint: str, fails: bool) -> None:
    """A block inside an endpoint is one commit, also in a `def` endpoint."""
    with pytest.raises(Declined) if fails else nullcontext():
        call(endpoint_of(evt, endpoint, fails, transaction))
    assert stored() == ((0, 0) if fails else (1, 1))
    assert len(sent()) == stored()[1]


@DEPENDENCIES
@ENDS
def test_a_block_inside_a_def_endpoint_is_independent_of_a_dependency(evt: Event, dependency: str, fails: bool) -> None:
    """The endpoint's own commit counts, although the block of a `def` dependency raises at its end."""
    around = Depends(open_block if dependency == "def" else open_async_block)
    raised = TransactionError if dependency == "def" else Declined
    with pytest.raises(raised) if fails or dependency == "def" else nullcontext():
        call(endpoint_of(evt, "def", fails, transaction), around)
    assert stored() == ((0, 0) if fails else (1, 1))


@ENDPOINTS
@DEPENDENCIES
@ENDS
def test_a_session_of_the_users_own_may_go_from_thread_to_thread(
    evt: Event, sent: Sent, endpoint: str, dependency: str, fails: bool
) -> None:
    """The commit of a user's session decides, whichever threads use the session in turn."""

    def session() -> Iterator[Session]:
        with Session(database.engine()) as opened, opened.begin():
            yield opened

    async def session_async() -> AsyncIterator[Session]:
        with Session(database.engine()) as opened, opened.begin():
            yield opened

    OpenedSession = Annotated[Session, Depends(session if dependency == "def" else session_async)]

    def write(opened: Session) -> Booking:
        opened.add(booking := Booking())
        return booking

    def place(opened: OpenedSession) -> None:  # type: ignore[valid-type]
        emit(evt, write(opened))
        if fails:
            raise Declined

    async def place_async(opened: OpenedSession) -> None:  # type: ignore[valid-type]
        await emit_async(evt, write(opened))
        if fails:
            raise Declined

    place.__annotations__["opened"] = place_async.__annotations__["opened"] = OpenedSession
    with pytest.raises(Declined) if fails else nullcontext():
        call(place if endpoint == "def" else place_async)
    assert stored() == ((0, 0) if fails else (1, 1))
    assert len(sent()) == stored()[1]


# Patterns that raise


@Scope
@ENDS
def test_a_def_endpoint_does_not_write_in_the_block_of_an_async_dependency(
    evt: Event, sent: Sent, fails: bool, scope: Any
) -> None:
    """A `def` endpoint runs on another thread than its async dependency: it raises and nothing is stored."""
    with pytest.raises(TransactionError, match="`def` endpoint"):
        call(endpoint_of(evt, "def", fails), Depends(open_async_block, scope=scope))
    assert (stored(), sent()) == ((0, 0), [])


@Scope
@ENDPOINTS
@ENDS
def test_the_block_of_a_def_dependency_raises_as_it_is_left_elsewhere(
    evt: Event, endpoint: str, fails: bool, scope: Any
) -> None:
    """The block of a `def` dependency raises at its end, and the endpoint's own commit stays."""
    with pytest.raises(TransactionError, match="`async def`") as raised:
        call(endpoint_of(evt, endpoint, fails), Depends(open_block, scope=scope))
    assert isinstance(raised.value.__cause__, Declined if fails else type(None))
    assert stored() == (1, 1)


def test_an_error_of_http_in_an_async_dependency_rolls_back_and_is_answered(evt: Event) -> None:
    """An `HTTPException` is an exception like any other."""
    api = FastAPI()

    @api.post("/", dependencies=[Depends(open_async_block, scope="function")])
    async def place() -> None:
        await emit_async(evt, Booking().save())
        raise HTTPException(402, "declined")

    with TestClient(api) as client:
        assert client.post("/").status_code == 402
    assert stored() == (0, 0)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_background_task_runs_after_the_block_of_a_function_scope(evt: Event, kind: str) -> None:
    """A background task of a function-scoped dependency writes outside of any transaction."""
    api = FastAPI()
    endpoint = endpoint_of(evt, kind)

    @api.post("/", dependencies=[Depends(open_async_block, scope="function")])
    async def place(tasks: BackgroundTasks) -> None:
        tasks.add_task(endpoint)

    with TestClient(api) as client:
        client.post("/").raise_for_status()
    assert stored() == (1, 1)


def test_a_def_background_task_inside_the_block_of_a_request_scope_raises(evt: Event) -> None:
    """A block of FastAPI's default scope is still open while a background task runs on another thread."""
    api = FastAPI()

    @api.post("/", dependencies=[Depends(open_async_block)])
    async def place(tasks: BackgroundTasks) -> None:
        tasks.add_task(endpoint_of(evt, "def"))

    with TestClient(api) as client, pytest.raises(TransactionError, match="another thread"):
        client.post("/")
    assert stored() == (0, 0)


@pytest.mark.parametrize("kind", ["http", "asgi"])
def test_a_middleware_around_an_async_endpoint_is_one_commit(evt: Event, kind: str) -> None:
    """Starlette runs the endpoint in a task of the same loop, or in the same one."""
    api = FastAPI()
    api.post("/")(endpoint_of(evt, "async def"))

    async def around(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        async with transaction():
            return await call_next(request)

    class Around:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async with transaction():
                await self.app(scope, receive, send)

    if kind == "http":
        api.middleware("http")(around)
    else:
        api.add_middleware(Around)
    client = TestClient(api)
    client.post("/").raise_for_status()
    assert stored() == (1, 1)
