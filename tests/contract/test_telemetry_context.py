"""Context variables that travel: a handler finds them as they were at its emit, wherever and whenever it runs."""

from __future__ import annotations

import asyncio
import enum
import importlib
import json
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from brokers import broker_away
from nitro.errors import ContextNotSerializable, EmitError
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Emission, Event, Namespace, emit, emit_async, on
from nitro.infrastructure.offload import current_delivery
from nitro.infrastructure.offload.delivery import Delivery
from nitro.infrastructure.offload.options import DELIVERY_HEADER
from nitro.infrastructure.offload.propagation import Headers, propagators
from nitro.infrastructure.outbox import operations
from nitro.infrastructure.outbox.relay import Relay
from nitro.telemetry import carry, context
from nitro.telemetry.context import CONTEXT_HEADER, SIGNATURE_HEADER, ContextPropagator
from waiting import until

Sent = Callable[..., list[Any]]
Work = Callable[..., Any]
Variable = ContextVar[Any]
PROMISES = ("at-most-once", "broker", "at-least-once", "exactly-once")
AT_ONCE = {"retry_backoff": False, "default_retry_delay": 0}
SOON = 0.001
TENANTS = """
from contextvars import ContextVar
from nitro.telemetry import carry
tenant = ContextVar("tenant")
carry(tenant)
"""


@pytest.fixture(autouse=True)
def _nothing_travels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing travels before a test nor after it."""
    monkeypatch.setattr(context, "_propagator", ContextPropagator())
    with propagators.replaced():
        yield


@pytest.fixture
def tenant() -> Variable:
    """A variable that travels; it is not set yet."""
    variable: Variable = ContextVar("tenant")
    carry(variable)
    return variable


@pytest.fixture
def key(app: Celery, monkeypatch: pytest.MonkeyPatch) -> str:
    """A key that this process signs with."""
    monkeypatch.setenv("NITRO_SIGNING_KEY", "correct horse")
    return "correct horse"


def within(variable: Variable, value: object, act: Callable[..., Any], *args: Any) -> Any:
    """What `act` gives where the variable has that value."""

    def run() -> Any:
        variable.set(value)
        return act(*args)

    return copy_context().run(run)


def reading(variable: Variable) -> Any:
    """A handler whose result is what it finds in a variable."""
    return lambda sender, **kwargs: variable.get("not set")


def delivery_of(emission: str) -> Delivery:
    """A run of a handler."""
    facts: dict[str, Any] = dict.fromkeys(("root", "parent", "event", "deadline"))
    return Delivery(emission=emission, handler="shop.handler", attempt=1, idempotency_key="k", **facts)


@pytest.mark.parametrize("delivery", PROMISES)
def test_a_handler_finds_what_was_set_at_the_emit(
    evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str
) -> None:
    """Whatever its promise is: a value travels with the message or with its row."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(reading(tenant))
    assert work(app).only(within(tenant, "t1", emit, evt)) == "t1"


@pytest.mark.parametrize("kind", ["async", "generator", "async generator"])
def test_every_kind_of_handler_finds_it(evt: Event, app: Celery, work: Work, tenant: Variable, kind: str) -> None:
    """On the worker's event loop as well, before and after it has waited there."""

    async def coroutine(sender: str) -> list[str]:
        before = tenant.get("not set")
        await asyncio.sleep(0)
        return [before, tenant.get("not set")]

    def generator(sender: str) -> Any:
        yield tenant.get("not set")
        yield tenant.get("not set")

    async def async_generator(sender: str) -> Any:
        yield tenant.get("not set")
        await asyncio.sleep(0)
        yield tenant.get("not set")

    kinds: dict[str, Any] = {"async": coroutine, "generator": generator, "async generator": async_generator}
    on(evt, offload=True, name="shop.handler")(kinds[kind])
    assert work(app).only(within(tenant, "t1", emit, evt, "ada")) == ["t1", "t1"]


def test_handlers_that_run_at_once_find_their_own(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """Two threads of one worker, each in its own tenant at the same time."""
    both = threading.Barrier(2)

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: str) -> Any:
        both.wait(20)
        found = tenant.get("not set")
        both.wait(20)
        return found

    emissions = [within(tenant, name, emit, evt, name) for name in ("t1", "t2")]
    worker = work(app, pool="threads", concurrency=2)
    assert [worker.only(emission) for emission in emissions] == ["t1", "t2"]


def test_emit_async_takes_them_along(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """Of the task that emits."""
    on(evt, offload=True, name="shop.handler")(reading(tenant))

    async def emitted(name: str) -> Emission:
        tenant.set(name)
        await asyncio.sleep(0)
        return await emit_async(evt)

    async def both() -> list[Emission]:
        return await asyncio.gather(emitted("t1"), emitted("t2"))

    emissions = asyncio.run(both())
    worker = work(app)
    assert [worker.only(emission) for emission in emissions] == ["t1", "t2"]


@pytest.mark.parametrize("delivery", PROMISES)
def test_later_changes_do_not_reach_it(evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str) -> None:
    """It is as it was at the emit, however late the commit lets it leave: another value, or one changed in place."""
    other: Variable = ContextVar("other")
    carry(other)
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: [tenant.get(), other.get()])

    def emitted() -> Emission:
        roles = ["reader"]
        tenant.set("t1")
        other.set(roles)
        with transaction():
            emission = emit(evt)
            tenant.set("t2")
            roles.append("admin")
        return emission

    assert work(app).only(copy_context().run(emitted)) == ["t1", ["reader"]]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
def test_it_waits_for_the_broker_with_its_handler(
    evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str
) -> None:
    """The broker was away, so a relay publishes it later, from a row, on a thread that knows nothing of it."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(reading(tenant))
    with broker_away():
        emission = within(tenant, "t1", emit, evt)
        assert [entry.state for entry in operations.read_deliveries()] == ["waiting"]
    assert work(app).only(emission) == "t1"


def test_it_waits_for_its_time_with_its_handler(
    evt: Event, app: Celery, work: Work, sent: Sent, tenant: Variable
) -> None:
    """A countdown is kept by the row, and so is what travels."""
    on(evt, offload={"countdown": SOON, "headers": {"shop": "s1"}}, name="shop.handler")(reading(tenant))
    emission = within(tenant, "t1", emit, evt)
    assert sent() == []
    assert work(app).only(emission) == "t1"


def test_a_relay_gives_each_message_its_own(evt: Event, app: Celery, work: Work, sent: Sent, tenant: Variable) -> None:
    """Many rows leave in one batch."""
    on(evt, offload={"countdown": SOON}, name="shop.handler")(reading(tenant))
    emissions = [within(tenant, f"t{number}", emit, evt) for number in range(3)]
    relay, published = Relay(app), list[int]()
    until(lambda: published.append(relay.step()) or sum(published) == 3)
    worker = work(app)
    assert [worker.only(emission) for emission in emissions] == ["t0", "t1", "t2"]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
def test_each_retry_finds_it(evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str) -> None:
    """Celery's own retries, and those that the row keeps; what an attempt has set is gone at the next one."""
    found: list[tuple[int, str]] = []

    @on(evt, offload={"delivery": delivery, **AT_ONCE}, name="shop.handler")
    def handler(sender: object) -> str:
        delivered = current_delivery()
        assert delivered is not None
        found.append((delivered.attempt, tenant.get("not set")))
        tenant.set("set by an attempt")
        if delivered.attempt < 3:
            raise ConnectionError("again")
        return "done"

    assert work(app).only(within(tenant, "t1", emit, evt)) == "done"
    assert found == [(1, "t1"), (2, "t1"), (3, "t1")]


def test_a_retry_that_the_handler_asks_for_finds_it(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """`raise handler.task.retry(…)`, signed or not, is a message of Celery's."""
    found: list[str] = []

    @on(evt, offload={"delivery": "broker"}, name="shop.handler")
    def handler(sender: object) -> str:
        found.append(tenant.get("not set"))
        if len(found) == 1:
            raise handler.task.retry(countdown=0)
        return "done"

    assert work(app).only(within(tenant, "t1", emit, evt)) == "done"
    assert found == ["t1", "t1"]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
def test_it_travels_on_to_what_a_handler_emits(
    evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str
) -> None:
    """From the first emit to the last handler of a chain, over as many workers as there are."""
    further, last = Namespace().event("further"), Namespace().event("last")
    found: dict[str, str] = {}
    on(evt, offload={"delivery": delivery}, name="shop.first")(lambda sender: emit(further) and None)

    @on(further, offload={"delivery": delivery}, name="shop.second")
    async def second(sender: object) -> None:
        found["second"] = tenant.get("not set")
        await emit_async(last)

    on(last, offload={"delivery": delivery}, name="shop.third")(
        lambda sender: found.update(third=tenant.get("not set"))
    )
    work(app)
    within(tenant, "t1", emit, evt)
    until(lambda: "third" in found)
    assert found == {"second": "t1", "third": "t1"}


def test_what_a_handler_sets_travels_on_and_ends_with_it(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """A handler may change it for what it emits; neither its value nor the one that came stays in the worker."""
    further = Namespace().event("further")
    found: dict[str, Any] = {}
    on(further, offload={"delivery": "broker"}, name="shop.second")(lambda sender: found.update(second=tenant.get()))

    @on(evt, offload={"delivery": "broker"}, name="shop.first")
    def first(sender: object) -> None:
        tenant.set(f"{tenant.get()} of the handler")
        emit(further)

    @app.task(name="shop.plain", shared=False)
    def plain() -> Any:
        return tenant.get("not set")

    worker = work(app)
    worker.only(within(tenant, "t1", emit, evt))
    assert worker.of(plain.delay().id) == "not set"
    until(lambda: found)
    assert found == {"second": "t1 of the handler"}


@pytest.mark.parametrize("error", [ValueError("no stock"), SystemExit(3)], ids=repr)
def test_it_ends_with_a_run_that_fails(tenant: Variable, error: BaseException) -> None:
    """Whatever ends a run, what was set for it ends with it."""
    with (
        pytest.raises(type(error)),
        context._propagator.extract({CONTEXT_HEADER: '{"tenant": "t1"}'}, delivery_of("e1")),
    ):
        assert tenant.get() == "t1"
        raise error
    assert tenant.get("not set") == "not set"


def test_what_is_not_set_does_not_travel(evt: Event, app: Celery, work: Work, sent: Sent, tenant: Variable) -> None:
    """Neither is a variable's default a value that was set; without any there is no header at all."""
    with_default: Variable = ContextVar("with default", default="default")
    carry(with_default)
    on(evt, offload=True, name="shop.handler")(lambda sender: [tenant.get("not set"), with_default.get("other")])
    emit(evt)
    (message,) = sent()
    assert CONTEXT_HEADER not in message.headers
    assert work(app).only(emit(evt)) == ["not set", "other"]


def test_none_is_a_value(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """A variable that was set to None is set in the handler."""
    on(evt, offload=True, name="shop.handler")(reading(tenant))
    assert work(app).only(within(tenant, None, emit, evt)) is None


@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
def test_an_emission_without_it_does_not_find_that_of_another(
    evt: Event, app: Celery, work: Work, sent: Sent, tenant: Variable, delivery: str
) -> None:
    """Messages of one handler are made alike, but what travels belongs to one emission."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(reading(tenant))
    worker = work(app)
    assert worker.only(within(tenant, "t1", emit, evt)) == "t1"
    assert worker.only(emit(evt)) == "not set"


class Role(enum.StrEnum):
    """What is equal to a text, and is none."""

    ADMIN = "admin"


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a"}, id="set"),
        pytest.param(object(), id="object"),
        pytest.param(("a", "b"), id="tuple"),
        pytest.param(b"a", id="bytes"),
        pytest.param(math.nan, id="nan"),
        pytest.param(math.inf, id="infinity"),
        pytest.param({1: "a"}, id="a key that is no text"),
        pytest.param({"roles": ("a",)}, id="a tuple inside"),
        pytest.param(Role.ADMIN, id="a member of an enum"),
        pytest.param([Role.ADMIN], id="a member inside"),
        pytest.param(_endless(), id="endless"),
        pytest.param(_deep(), id="deep"),
    ],
)
@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
def test_what_json_does_not_bring_back_is_an_error_at_the_emit(
    evt: Event, app: Celery, sent: Sent, tenant: Variable, value: Any, delivery: str
) -> None:
    """It names the variable, and nothing is queued: a handler never finds something else than was set."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(reading(tenant))
    with pytest.raises(ContextNotSerializable, match="'tenant'") as raised:
        within(tenant, value, emit, evt)
    assert isinstance(raised.value, EmitError)
    assert sent() == []
    assert operations.read_deliveries() == []


def test_the_error_ends_the_transaction_like_any_other(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """What was emitted before it in the same transaction is not queued either."""
    on(evt, offload=True, name="shop.handler")(reading(tenant))

    def both() -> None:
        with transaction():
            emit(evt)
            tenant.set({"a"})
            emit(evt)

    with pytest.raises(ContextNotSerializable):
        copy_context().run(both)
    assert sent() == []
    assert operations.read_deliveries() == []


def test_values_that_no_header_can_hold_are_refused(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """At the emit, and not by a broker that ends its connection."""
    on(evt, offload=True, name="shop.handler")(reading(tenant))
    with pytest.raises(ContextNotSerializable, match="'tenant' cannot be sent: 20014 bytes"):
        within(tenant, "x" * 20_000, emit, evt)
    assert sent() == []


def test_without_offloaded_handlers_any_value_will_do(evt: Event, app: Celery, tenant: Variable) -> None:
    """Where nothing travels nothing can be wrong with it."""
    on(evt)(lambda sender: tenant.get())
    assert within(tenant, {"a"}, emit, evt) == [{"a"}]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "through a relay"])
def test_json_comes_back_as_it_was(
    evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str, late: bool
) -> None:
    """Texts, numbers of any size, truth values, None, lists and dicts of these."""
    value = {
        "text": "ü\n\x00\ud800",
        "numbers": [0, -1, 2**70, 1.0, 0.1, 1e300],
        "": [True, None, {}, []],
        "k" * 300: 1,
    }
    found: list[Any] = []
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: found.append(tenant.get()))
    if late:
        with broker_away():
            emission = within(tenant, value, emit, evt)
    else:
        emission = within(tenant, value, emit, evt)
    work(app).only(emission)
    assert repr(found) == repr([value])


def test_they_are_one_header_of_text(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """RabbitMQ has types of its own for headers, which not every JSON value has a place in; a text has."""
    on(evt, offload=True, name="shop.handler")(reading(tenant))
    within(tenant, {"id": 2**70}, emit, evt)
    (message,) = sent()
    assert json.loads(message.headers[CONTEXT_HEADER]) == {"tenant": {"id": 2**70}}
    assert message.headers[CONTEXT_HEADER].isascii()


def test_monitoring_does_not_show_them(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """What Flower shows of a message has no values of the context."""
    on(evt, offload=True, name="shop.handler")(reading(tenant))
    within(tenant, "secret", emit, evt)
    (message,) = sent()
    assert "secret" not in message.headers["argsrepr"] + message.headers["kwargsrepr"]


def test_two_variables_of_one_name_are_an_error(tenant: Variable) -> None:
    """A handler could not know whose value it finds."""
    with pytest.raises(ContextNotSerializable, match="'tenant' cannot be sent: another variable of that name"):
        carry(ContextVar("tenant"))


@pytest.fixture
def tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that has a variable travel."""
    (tmp_path / "tenants.py").write_text(TENANTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("tenants")
    sys.modules.pop("tenants", None)


@pytest.mark.parametrize("how", ["reloaded", "edited and reloaded", "imported anew"])
def test_a_variable_of_a_module_that_is_loaded_again_takes_the_place_of_the_older(
    evt: Event, app: Celery, sent: Sent, tenants: Any, tmp_path: Path, how: str
) -> None:
    """As its handlers do: what is there now is what the module says now."""
    older = tenants.tenant
    if how == "edited and reloaded":
        (tmp_path / "tenants.py").write_text(f"# which tenant it is\n{TENANTS}")
    if how == "imported anew":
        del sys.modules["tenants"]
    newer = importlib.import_module("tenants") if how == "imported anew" else importlib.reload(tenants)
    assert newer.tenant is not older
    on(evt, offload=True, name="shop.handler")(reading(newer.tenant))
    within(newer.tenant, "t1", emit, evt)
    (message,) = sent()
    assert json.loads(message.headers[CONTEXT_HEADER]) == {"tenant": "t1"}


def test_two_variables_of_one_module_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is imported for the first time, so that they are two; the error says the way out of a reload."""
    (tmp_path / "twice.py").write_text(f"{TENANTS}\nanother = ContextVar('tenant')\ncarry(another)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ContextNotSerializable, match="call carry\\(\\) in that module, at its top level"):
        importlib.import_module("twice")


def test_a_variable_of_another_module_is_an_error(tenants: Any, tmp_path: Path) -> None:
    """Also where both are called for at the top level."""
    (tmp_path / "others.py").write_text(TENANTS)
    with pytest.raises(ContextNotSerializable, match="'tenant' cannot be sent: another variable of that name"):
        importlib.import_module("others")


def test_a_variable_may_be_named_twice(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """Two modules may both want it to travel; it travels once, with others of other names."""
    other: Variable = ContextVar("other")
    carry(tenant, other)
    carry(other)
    on(evt, offload=True, name="shop.handler")(reading(tenant))

    def emitted() -> None:
        tenant.set("t1")
        other.set("o1")
        emit(evt)

    copy_context().run(emitted)
    (message,) = sent()
    assert json.loads(message.headers[CONTEXT_HEADER]) == {"tenant": "t1", "other": "o1"}
    assert len(propagators) == 1


def test_a_worker_that_does_not_know_a_variable_runs_the_handler(
    evt: Event, app: Celery, work: Work, tenant: Variable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer emitter may send more than an older worker knows."""
    other: Variable = ContextVar("other")
    carry(other)
    on(evt, offload=True, name="shop.handler")(lambda sender: [tenant.get("not set"), other.get("not set")])

    def emitted() -> Emission:
        tenant.set("t1")
        other.set("o1")
        return emit(evt)

    emission = copy_context().run(emitted)
    del context._propagator.variables["other"]
    assert work(app).only(emission) == ["t1", "not set"]


def test_headers_of_the_user_travel_beside_them(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """`Offload(headers=…)` is still there, and so is what the task finds in its request."""
    seen: list[Any] = []

    @on(evt, offload={"delivery": "broker", "headers": {"shop": "s1"}}, name="shop.handler")
    def handler(sender: object) -> str:
        seen.append(handler.task.request.headers["shop"])
        return str(tenant.get("not set"))

    assert work(app).only(within(tenant, "t1", emit, evt)) == "t1"
    assert seen == ["s1"]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
def test_what_is_signed_is_accepted(
    evt: Event, app: Celery, work: Work, tenant: Variable, key: str, delivery: str
) -> None:
    """At the first attempt, at a retry, and in what the handler emits."""
    further = Namespace().event("further")
    found: list[str] = []

    @on(evt, offload={"delivery": delivery, **AT_ONCE}, name="shop.handler")
    def handler(sender: object) -> None:
        found.append(tenant.get("not set"))
        if len(found) == 1:
            raise ConnectionError("again")
        emit(further)

    on(further, offload={"delivery": delivery}, name="shop.further")(lambda sender: found.append(tenant.get("not set")))
    work(app)
    within(tenant, "t1", emit, evt)
    until(lambda: len(found) == 3)
    assert found == ["t1", "t1", "t1"]


def test_what_is_signed_is_accepted_from_a_relay(
    evt: Event, app: Celery, work: Work, tenant: Variable, key: str
) -> None:
    """The signature waits with the value."""
    on(evt, offload={"countdown": SOON}, name="shop.handler")(reading(tenant))
    assert work(app).only(within(tenant, {"id": 1, "name": "ü"}, emit, evt)) == {"id": 1, "name": "ü"}


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(
            lambda mine, others: mine | {CONTEXT_HEADER: mine[CONTEXT_HEADER].replace("t1", "t9")}, id="another value"
        ),
        pytest.param(lambda mine, others: {CONTEXT_HEADER: mine[CONTEXT_HEADER]}, id="no signature"),
        pytest.param(lambda mine, others: mine | {SIGNATURE_HEADER: None}, id="an empty signature"),
        pytest.param(lambda mine, others: mine | {SIGNATURE_HEADER: "\xfc\ud800"}, id="a signature that is no hex"),
        pytest.param(lambda mine, others: others, id="that of another emission"),
    ],
)
def test_what_is_not_signed_as_it_must_be_is_refused(
    evt: Event,
    app: Celery,
    work: Work,
    sent: Sent,
    tenant: Variable,
    key: str,
    caplog: pytest.LogCaptureFixture,
    forge: Callable[[Headers, Headers], Headers],
) -> None:
    """Who can write into the broker cannot have a handler work for another tenant; the log says that it was tried."""
    on(evt, offload={"delivery": "broker"}, name="shop.handler")(reading(tenant))
    emission = within(tenant, "t1", emit, evt)
    within(tenant, "t9", emit, evt)
    mine, others = (
        (message, {name: message.headers[name] for name in (CONTEXT_HEADER, SIGNATURE_HEADER, DELIVERY_HEADER)})
        for message in sent()
    )
    forged = forge(mine[1], others[1])
    app.send_task(mine[0].name, (), mine[0].kwargs, task_id=mine[0].id, headers=dict(forged), task_type=None)
    with caplog.at_level(logging.ERROR, "nitro.worker"):
        assert work(app).only(emission) == "not set"
    (refusal,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert refusal == f"context of emission {emission.id} is refused: it is not signed as it must be"


def test_a_signature_of_another_key_is_refused(
    evt: Event, app: Celery, work: Work, tenant: Variable, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a key is set, a value that was signed with another one is not taken."""
    emission = Emission.of("order.placed")
    given = within(tenant, "t1", context._propagator.inject, emission)
    monkeypatch.setenv("NITRO_SIGNING_KEY", "battery staple")
    with context._propagator.extract(given, delivery_of(emission.id)):
        assert tenant.get("not set") == "not set"


class Recording:
    """A carrier that notes who asks it for what."""

    def __init__(self, name: str, notes: list[Any]) -> None:
        self.name, self.notes = name, notes

    def inject(self, emission: Emission) -> Headers:
        self.notes.append(("give", self.name, emission.id))
        return {f"x-{self.name}": emission.id}

    @contextmanager
    def extract(self, headers: Headers, delivery: Delivery) -> Iterator[None]:
        self.notes.append(("take", self.name, headers[f"x-{self.name}"], delivery.handler))
        try:
            yield
        except ConnectionError:
            self.notes.append(("failed", self.name))
            raise
        finally:
            self.notes.append(("left", self.name))


def test_a_carrier_is_asked_once_an_emission(evt: Event, app: Celery, sent: Sent) -> None:
    """Not once a handler, and not at all where nothing is queued."""
    notes: list[Any] = []
    propagators.append(Recording("one", notes))
    for name in ("shop.a", "shop.b"):
        on(evt, offload=True, name=name)(lambda sender: None)
    on(evt)(lambda sender: sender != "cancelled")
    emit(evt, "cancelled")
    assert notes == []
    emission = emit(evt, "ada")
    assert notes == [("give", "one", emission.id)]
    assert [message.headers["x-one"] for message in sent()] == [emission.id] * 2


def test_carriers_surround_a_run_one_inside_the_other(evt: Event, app: Celery, work: Work) -> None:
    """The last one is the innermost; each sees how the run ends, at every attempt."""
    notes: list[Any] = []
    propagators.extend([Recording("outer", notes), Recording("inner", notes)])

    @on(evt, offload={"delivery": "broker", **AT_ONCE}, name="shop.handler")
    def handler(sender: object) -> None:
        notes.append("runs")
        if notes.count("runs") == 1:
            raise ConnectionError("again")

    emission = emit(evt)
    work(app).only(emission)
    taken = [("take", name, emission.id, "shop.handler") for name in ("outer", "inner")]
    first = [*taken, "runs", ("failed", "inner"), ("left", "inner"), ("failed", "outer"), ("left", "outer")]
    second = [*taken, "runs", ("left", "inner"), ("left", "outer")]
    assert notes[2:] == [*first, *second]


def test_a_carrier_is_there_while_the_promise_is_kept(evt: Event, app: Celery, work: Work) -> None:
    """What an exactly-once handler commits is committed inside; a span around it sees that as well."""
    notes: list[Any] = []
    propagators.append(Recording("one", notes))

    @on(evt, offload={"delivery": "exactly-once"}, name="shop.handler")
    def handler(sender: object) -> None:
        delivery = current_delivery()
        assert delivery is not None
        assert delivery.transaction is not None
        delivery.transaction.after_commit(lambda: notes.append("committed"))

    work(app).only(emit(evt))
    assert notes[-2:] == ["committed", ("left", "one")]
