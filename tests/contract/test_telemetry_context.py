"""A handler finds propagated context variables as they were at its emit, wherever and whenever it runs."""

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

from nitro.errors import ContextNotSerializable, EmitError
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Emission, Event, Namespace, emit, emit_async, on
from nitro.infrastructure.offload import current_delivery
from nitro.telemetry import carry, context
from nitro.telemetry.context import CONTEXT_HEADER, SIGNATURE_HEADER, ContextPropagator
from support import outbox
from support.broker import DELIVERY_HEADER
from support.brokers import broker_away
from support.telemetry import Delivery, Headers, add_propagators, count_propagators, delivery_of, no_propagators
from support.waiting import until

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
def _no_propagators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Removes all propagated variables and propagators for a test, and restores them."""
    monkeypatch.setattr(context, "_propagator", ContextPropagator())
    with no_propagators():
        yield


@pytest.fixture
def tenant() -> Variable:
    """A propagated variable that is not set yet."""
    variable: Variable = ContextVar("tenant")
    carry(variable)
    return variable


@pytest.fixture
def key(app: Celery, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key that this process signs with."""
    monkeypatch.setenv("NITRO_SIGNING_KEY", "correct horse")
    return "correct horse"


def within(variable: Variable, value: object, function: Callable[..., Any], *args: Any) -> Any:
    """Returns the result of `function` where the variable has that value."""

    def run() -> Any:
        variable.set(value)
        return function(*args)

    return copy_context().run(run)


def reader_of(variable: Variable) -> Any:
    """Returns a handler that returns the value of a variable."""
    return lambda sender, **kwargs: variable.get("not set")


@pytest.mark.parametrize("delivery", PROMISES)
def test_a_handler_finds_what_was_set_at_the_emit(
    evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str
) -> None:
    """A handler with any delivery promise finds the value of the emit."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(reader_of(tenant))
    assert work(app).only(within(tenant, "t1", emit, evt)) == "t1"


@pytest.mark.parametrize("kind", ["async", "generator", "async generator"])
def test_every_kind_of_handler_finds_it(evt: Event, app: Celery, work: Work, tenant: Variable, kind: str) -> None:
    """Every kind of handler finds the value, before and after an await on the worker's loop."""

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
    """Handlers on two threads of a worker find their own values at the same time."""
    both = threading.Barrier(2)

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: str) -> Any:
        both.wait(20)
        value = tenant.get("not set")
        both.wait(20)
        return value

    emissions = [within(tenant, name, emit, evt, name) for name in ("t1", "t2")]
    worker = work(app, pool="threads", concurrency=2)
    assert [worker.only(emission) for emission in emissions] == ["t1", "t2"]


def test_emit_async_takes_them_along(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """`emit_async` sends the values of the task that emits."""
    on(evt, offload=True, name="shop.handler")(reader_of(tenant))

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
    """A value arrives as it was at the emit, although it was replaced or changed before the commit."""
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
    """A value waits in the row during a broker outage, and a relay publishes it with the message."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(reader_of(tenant))
    with broker_away():
        emission = within(tenant, "t1", emit, evt)
        assert [entry.state for entry in outbox.deliveries()] == ["waiting"]
    assert work(app).only(emission) == "t1"


def test_it_waits_for_its_time_with_its_handler(
    evt: Event, app: Celery, work: Work, sent: Sent, tenant: Variable
) -> None:
    """A value waits in the row of a delivery with a countdown."""
    on(evt, offload={"countdown": SOON, "headers": {"shop": "s1"}}, name="shop.handler")(reader_of(tenant))
    emission = within(tenant, "t1", emit, evt)
    assert sent() == []
    assert work(app).only(emission) == "t1"


def test_a_relay_gives_each_message_its_own(evt: Event, app: Celery, work: Work, sent: Sent, tenant: Variable) -> None:
    """A relay that publishes many rows in a batch sends each message its own values."""
    on(evt, offload={"countdown": SOON}, name="shop.handler")(reader_of(tenant))
    emissions = [within(tenant, f"t{number}", emit, evt) for number in range(3)]
    relay, published = outbox.Relay(app), list[int]()
    until(lambda: published.append(relay.step()) or sum(published) == 3)
    worker = work(app)
    assert [worker.only(emission) for emission in emissions] == ["t0", "t1", "t2"]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once", "exactly-once"])
def test_each_retry_finds_it(evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str) -> None:
    """Each retry by Celery or by the row finds the value of the emit, without changes by earlier attempts."""
    values: list[tuple[int, str]] = []

    @on(evt, offload={"delivery": delivery, **AT_ONCE}, name="shop.handler")
    def handler(sender: object) -> str:
        delivery_of_run = current_delivery()
        assert delivery_of_run is not None
        values.append((delivery_of_run.attempt, tenant.get("not set")))
        tenant.set("set by an attempt")
        if delivery_of_run.attempt < 3:
            raise ConnectionError("again")
        return "done"

    assert work(app).only(within(tenant, "t1", emit, evt)) == "done"
    assert values == [(1, "t1"), (2, "t1"), (3, "t1")]


def test_a_retry_that_the_handler_asks_for_finds_it(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """A retry by `raise handler.task.retry(…)` finds the value."""
    values: list[str] = []

    @on(evt, offload={"delivery": "broker"}, name="shop.handler")
    def handler(sender: object) -> str:
        values.append(tenant.get("not set"))
        if len(values) == 1:
            raise handler.task.retry(countdown=0)
        return "done"

    assert work(app).only(within(tenant, "t1", emit, evt)) == "done"
    assert values == ["t1", "t1"]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
def test_it_travels_on_to_what_a_handler_emits(
    evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str
) -> None:
    """A value is passed on from the first emit to the last handler of a chain."""
    further, last = Namespace().event("further"), Namespace().event("last")
    values: dict[str, str] = {}
    on(evt, offload={"delivery": delivery}, name="shop.first")(lambda sender: emit(further) and None)

    @on(further, offload={"delivery": delivery}, name="shop.second")
    async def second(sender: object) -> None:
        values["second"] = tenant.get("not set")
        await emit_async(last)

    on(last, offload={"delivery": delivery}, name="shop.third")(
        lambda sender: values.update(third=tenant.get("not set"))
    )
    work(app)
    within(tenant, "t1", emit, evt)
    until(lambda: "third" in values)
    assert values == {"second": "t1", "third": "t1"}


def test_what_a_handler_sets_travels_on_and_ends_with_it(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """A value that a handler sets is passed on by its emits; no value stays in the worker."""
    further = Namespace().event("further")
    values: dict[str, Any] = {}
    on(further, offload={"delivery": "broker"}, name="shop.second")(lambda sender: values.update(second=tenant.get()))

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
    until(lambda: values)
    assert values == {"second": "t1 of the handler"}


@pytest.mark.parametrize("error", [ValueError("no stock"), SystemExit(3)], ids=repr)
def test_it_ends_with_a_run_that_fails(tenant: Variable, error: BaseException) -> None:
    """A value ends with its run, whether the run succeeds, fails or exits."""
    with (
        pytest.raises(type(error)),
        context._propagator.extract({CONTEXT_HEADER: '{"tenant": "t1"}'}, delivery_of("e1")),
    ):
        assert tenant.get() == "t1"
        raise error
    assert tenant.get("not set") == "not set"


def test_what_is_not_set_does_not_travel(evt: Event, app: Celery, work: Work, sent: Sent, tenant: Variable) -> None:
    """An unset variable is not sent, and neither is a default; without values there is no header."""
    with_default: Variable = ContextVar("with default", default="default")
    carry(with_default)
    on(evt, offload=True, name="shop.handler")(lambda sender: [tenant.get("not set"), with_default.get("other")])
    emit(evt)
    (message,) = sent()
    assert CONTEXT_HEADER not in message.headers
    assert work(app).only(emit(evt)) == ["not set", "other"]


def test_none_is_a_value(evt: Event, app: Celery, work: Work, tenant: Variable) -> None:
    """A variable that was set to None is set to None in the handler."""
    on(evt, offload=True, name="shop.handler")(reader_of(tenant))
    assert work(app).only(within(tenant, None, emit, evt)) is None


@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
def test_an_emission_without_it_does_not_find_that_of_another(
    evt: Event, app: Celery, work: Work, sent: Sent, tenant: Variable, delivery: str
) -> None:
    """A value is not found by another emission of the same handler."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(reader_of(tenant))
    worker = work(app)
    assert worker.only(within(tenant, "t1", emit, evt)) == "t1"
    assert worker.only(emit(evt)) == "not set"


class Role(enum.StrEnum):
    """An enum whose members equal a text without being a plain text."""

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
    """A value that JSON does not restore raises at the emit with the variable's name, and nothing is queued."""
    on(evt, offload={"delivery": delivery}, name="shop.handler")(reader_of(tenant))
    with pytest.raises(ContextNotSerializable, match="'tenant'") as raised:
        within(tenant, value, emit, evt)
    assert isinstance(raised.value, EmitError)
    assert sent() == []
    assert outbox.deliveries() == []


def test_the_error_ends_the_transaction_like_any_other(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """The error rolls the transaction back, with its earlier emits."""
    on(evt, offload=True, name="shop.handler")(reader_of(tenant))

    def both() -> None:
        with transaction():
            emit(evt)
            tenant.set({"a"})
            emit(evt)

    with pytest.raises(ContextNotSerializable):
        copy_context().run(both)
    assert sent() == []
    assert outbox.deliveries() == []


def test_values_that_no_header_can_hold_are_refused(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """A value that is too long for a header raises at the emit."""
    on(evt, offload=True, name="shop.handler")(reader_of(tenant))
    with pytest.raises(ContextNotSerializable, match="'tenant' cannot be sent: 20014 bytes"):
        within(tenant, "x" * 20_000, emit, evt)
    assert sent() == []


def test_without_offloaded_handlers_any_value_will_do(evt: Event, app: Celery, tenant: Variable) -> None:
    """An emit without offloaded handlers accepts any value."""
    on(evt)(lambda sender: tenant.get())
    assert within(tenant, {"a"}, emit, evt) == [{"a"}]


@pytest.mark.parametrize("delivery", ["broker", "at-least-once"])
@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "through a relay"])
def test_json_comes_back_as_it_was(
    evt: Event, app: Celery, work: Work, tenant: Variable, delivery: str, is_late: bool
) -> None:
    """Texts, numbers of any size, booleans, None, lists and dicts arrive equal."""
    value = {
        "text": "ü\n\x00\ud800",
        "numbers": [0, -1, 2**70, 1.0, 0.1, 1e300],
        "": [True, None, {}, []],
        "k" * 300: 1,
    }
    values: list[Any] = []
    on(evt, offload={"delivery": delivery}, name="shop.handler")(lambda sender: values.append(tenant.get()))
    if is_late:
        with broker_away():
            emission = within(tenant, value, emit, evt)
    else:
        emission = within(tenant, value, emit, evt)
    work(app).only(emission)
    assert repr(values) == repr([value])


def test_they_are_one_header_of_text(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """All values are in one header of ASCII text, because RabbitMQ's header types cannot hold every JSON value."""
    on(evt, offload=True, name="shop.handler")(reader_of(tenant))
    within(tenant, {"id": 2**70}, emit, evt)
    (message,) = sent()
    assert json.loads(message.headers[CONTEXT_HEADER]) == {"tenant": {"id": 2**70}}
    assert message.headers[CONTEXT_HEADER].isascii()


def test_monitoring_does_not_show_them(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """The text that Flower shows of a message has no values of the context."""
    on(evt, offload=True, name="shop.handler")(reader_of(tenant))
    within(tenant, "secret", emit, evt)
    (message,) = sent()
    assert "secret" not in message.headers["argsrepr"] + message.headers["kwargsrepr"]


def test_two_variables_of_one_name_are_an_error(tenant: Variable) -> None:
    """Two variables of one name raise, because a handler could not tell their values apart."""
    with pytest.raises(ContextNotSerializable, match="'tenant' cannot be sent: another variable of that name"):
        carry(ContextVar("tenant"))


@pytest.fixture
def tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that propagates a variable."""
    (tmp_path / "tenants.py").write_text(TENANTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("tenants")
    sys.modules.pop("tenants", None)


@pytest.mark.parametrize("how", ["reloaded", "edited and reloaded", "imported anew"])
def test_a_variable_of_a_module_that_is_loaded_again_takes_the_place_of_the_older(
    evt: Event, app: Celery, sent: Sent, tenants: Any, tmp_path: Path, how: str
) -> None:
    """A variable of a reloaded module replaces the earlier variable of that module."""
    older = tenants.tenant
    if how == "edited and reloaded":
        (tmp_path / "tenants.py").write_text(f"# which tenant it is\n{TENANTS}")
    if how == "imported anew":
        del sys.modules["tenants"]
    newer = importlib.import_module("tenants") if how == "imported anew" else importlib.reload(tenants)
    assert newer.tenant is not older
    on(evt, offload=True, name="shop.handler")(reader_of(newer.tenant))
    within(newer.tenant, "t1", emit, evt)
    (message,) = sent()
    assert json.loads(message.headers[CONTEXT_HEADER]) == {"tenant": "t1"}


def test_two_variables_of_one_module_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variables of one name in a module raise at its first import; the error says how a reload works."""
    (tmp_path / "twice.py").write_text(f"{TENANTS}\nanother = ContextVar('tenant')\ncarry(another)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ContextNotSerializable, match="call carry\\(\\) in that module, at its top level"):
        importlib.import_module("twice")


def test_a_variable_of_another_module_is_an_error(tenants: Any, tmp_path: Path) -> None:
    """A variable of another module with the same name raises, although both are at the top level."""
    (tmp_path / "others.py").write_text(TENANTS)
    with pytest.raises(ContextNotSerializable, match="'tenant' cannot be sent: another variable of that name"):
        importlib.import_module("others")


def test_a_variable_may_be_named_twice(evt: Event, app: Celery, sent: Sent, tenant: Variable) -> None:
    """A variable that is passed to `carry` twice is sent once."""
    other: Variable = ContextVar("other")
    carry(tenant, other)
    carry(other)
    on(evt, offload=True, name="shop.handler")(reader_of(tenant))

    def emitted() -> None:
        tenant.set("t1")
        other.set("o1")
        emit(evt)

    copy_context().run(emitted)
    (message,) = sent()
    assert json.loads(message.headers[CONTEXT_HEADER]) == {"tenant": "t1", "other": "o1"}
    assert count_propagators() == 1


def test_a_worker_that_does_not_know_a_variable_runs_the_handler(
    evt: Event, app: Celery, work: Work, tenant: Variable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker runs the handler without a variable that only the emitter knows."""
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
    """Headers of `Offload(headers=…)` are sent beside the context."""
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
    """A signed value is accepted at the first attempt, at a retry and by the handlers of further emits."""
    further = Namespace().event("further")
    values: list[str] = []

    @on(evt, offload={"delivery": delivery, **AT_ONCE}, name="shop.handler")
    def handler(sender: object) -> None:
        values.append(tenant.get("not set"))
        if len(values) == 1:
            raise ConnectionError("again")
        emit(further)

    on(further, offload={"delivery": delivery}, name="shop.further")(
        lambda sender: values.append(tenant.get("not set"))
    )
    work(app)
    within(tenant, "t1", emit, evt)
    until(lambda: len(values) == 3)
    assert values == ["t1", "t1", "t1"]


def test_what_is_signed_is_accepted_from_a_relay(
    evt: Event, app: Celery, work: Work, tenant: Variable, key: str
) -> None:
    """A value that a relay publishes is accepted with the signature of the emit."""
    on(evt, offload={"countdown": SOON}, name="shop.handler")(reader_of(tenant))
    assert work(app).only(within(tenant, {"id": 1, "name": "ü"}, emit, evt)) == {"id": 1, "name": "ü"}


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(
            lambda own, others: own | {CONTEXT_HEADER: own[CONTEXT_HEADER].replace("t1", "t9")}, id="another value"
        ),
        pytest.param(lambda own, others: {CONTEXT_HEADER: own[CONTEXT_HEADER]}, id="no signature"),
        pytest.param(lambda own, others: own | {SIGNATURE_HEADER: None}, id="an empty signature"),
        pytest.param(lambda own, others: own | {SIGNATURE_HEADER: "\xfc\ud800"}, id="a signature that is no hex"),
        pytest.param(lambda own, others: others, id="that of another emission"),
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
    """A value without the right signature is refused and logged."""
    on(evt, offload={"delivery": "broker"}, name="shop.handler")(reader_of(tenant))
    emission = within(tenant, "t1", emit, evt)
    within(tenant, "t9", emit, evt)
    own_message, other_message = (
        (message, {name: message.headers[name] for name in (CONTEXT_HEADER, SIGNATURE_HEADER, DELIVERY_HEADER)})
        for message in sent()
    )
    forged = forge(own_message[1], other_message[1])
    app.send_task(
        own_message[0].name, (), own_message[0].kwargs, task_id=own_message[0].id, headers=dict(forged), task_type=None
    )
    with caplog.at_level(logging.ERROR, "nitro.worker"):
        assert work(app).only(emission) == "not set"
    (refusal,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert refusal == f"context of emission {emission.id} is refused: it is not signed as it must be"


def test_a_signature_of_another_key_is_refused(
    evt: Event, app: Celery, work: Work, tenant: Variable, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that was signed with another key is refused."""
    emission = Emission.of("order.placed")
    headers = within(tenant, "t1", context._propagator.inject, emission)
    monkeypatch.setenv("NITRO_SIGNING_KEY", "battery staple")
    with context._propagator.extract(headers, delivery_of(emission.id)):
        assert tenant.get("not set") == "not set"


class RecordingPropagator:
    """A propagator that records its calls."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        self.name, self.calls = name, calls

    def inject(self, emission: Emission) -> Headers:
        self.calls.append(("inject", self.name, emission.id))
        return {f"x-{self.name}": emission.id}

    @contextmanager
    def extract(self, headers: Headers, delivery: Delivery) -> Iterator[None]:
        self.calls.append(("extract", self.name, headers[f"x-{self.name}"], delivery.handler))
        try:
            yield
        except ConnectionError:
            self.calls.append(("failed", self.name))
            raise
        finally:
            self.calls.append(("exit", self.name))


def test_a_propagator_injects_once_an_emission(evt: Event, app: Celery, sent: Sent) -> None:
    """A propagator injects once for all handlers of an emission, and not if nothing is queued."""
    calls: list[Any] = []
    add_propagators(RecordingPropagator("one", calls))
    for name in ("shop.a", "shop.b"):
        on(evt, offload=True, name=name)(lambda sender: None)
    on(evt)(lambda sender: sender != "cancelled")
    emit(evt, "cancelled")
    assert calls == []
    emission = emit(evt, "ada")
    assert calls == [("inject", "one", emission.id)]
    assert [message.headers["x-one"] for message in sent()] == [emission.id] * 2


def test_propagators_are_nested_around_a_run(evt: Event, app: Celery, work: Work) -> None:
    """Propagators are nested around each attempt in their order; each sees its exception."""
    calls: list[Any] = []
    add_propagators(RecordingPropagator("outer", calls), RecordingPropagator("inner", calls))

    @on(evt, offload={"delivery": "broker", **AT_ONCE}, name="shop.handler")
    def handler(sender: object) -> None:
        calls.append("runs")
        if calls.count("runs") == 1:
            raise ConnectionError("again")

    emission = emit(evt)
    work(app).only(emission)
    extracted = [("extract", name, emission.id, "shop.handler") for name in ("outer", "inner")]
    first = [*extracted, "runs", ("failed", "inner"), ("exit", "inner"), ("failed", "outer"), ("exit", "outer")]
    second = [*extracted, "runs", ("exit", "inner"), ("exit", "outer")]
    assert calls[2:] == [*first, *second]


def test_a_propagator_surrounds_the_commit(evt: Event, app: Celery, work: Work) -> None:
    """An exactly-once handler's transaction is committed before the propagators exit."""
    calls: list[Any] = []
    add_propagators(RecordingPropagator("one", calls))

    @on(evt, offload={"delivery": "exactly-once"}, name="shop.handler")
    def handler(sender: object) -> None:
        delivery = current_delivery()
        assert delivery is not None
        assert delivery.transaction is not None
        delivery.transaction.after_commit(lambda: calls.append("committed"))

    work(app).only(emit(evt))
    assert calls[-2:] == ["committed", ("exit", "one")]
