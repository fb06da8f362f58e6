"""`python -m examples.shop.demo` runs the shop with a real worker, and exits with 0 only if every effect was seen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from examples.shop.demo.effects import Effect, emission_faults, expected_effects, find_faults, stock_faults
from examples.shop.demo.orders import Sales
from examples.shop.domain import Order, OrderItem, Product
from nitro.infrastructure.events import Emission
from worker import ROOT

pytestmark = pytest.mark.acceptance

EMITTER, WORKER = 1, 2
HANDLERS = ("send_confirmation", "reduce_stock", "notify_webhook", "track_analytics")
REFUSE_MAILS = """
import sys
from examples.shop.demo import __main__ as demo, servers

async def refuse(self, server, session, envelope):
    return "550 no mail today"

servers.MailServer.handle_DATA = refuse
demo.EFFECTS_SECONDS = 3.0
sys.exit(demo.main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A demo that has ended."""

    pid: int
    code: int
    output: str

    @property
    def worker(self) -> int:
        """The process id of the demo's worker."""
        match = re.search(r"process (\d+) +celery -A tasks worker", self.output)
        assert match, self.output
        return int(match[1])

    def part(self, heading: str) -> str:
        """Returns the lines of one part of the timeline."""
        match = re.search(rf"^{heading}.*?(?=\n\n|\Z)", self.output, re.MULTILINE | re.DOTALL)
        assert match, self.output
        return match[0]


def start(*arguments: str) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def end(process: subprocess.Popen[str], read: str = "") -> Run:
    output, _ = process.communicate(timeout=90)
    return Run(pid=process.pid, code=process.returncode, output=read + output)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def demo() -> Run:
    """A finished run of the demo."""
    return end(start("-m", "examples.shop.demo"))


@pytest.fixture(scope="module")
def without_mail() -> Run:
    """A finished run of the demo with a mail server that refuses all mails."""
    return end(start("-c", REFUSE_MAILS))


def test_the_demo_succeeds(demo: Run) -> None:
    """The demo exits with 0 on a machine without servers or settings, and explains its result."""
    assert demo.code == 0, demo.output
    assert "every side effect was seen exactly once" in demo.part("Result")


def test_it_shows_what_ran_inline(demo: Run) -> None:
    """The timeline shows validation, audit, the alert for an order over 500 and the async handler."""
    inline = re.findall(r"inline +(\w+)", demo.part("grace@example.com"))
    assert inline[:3] == ["validate", "audit", "high_value_alert"]
    assert inline[3:] == ["refresh_dashboard"]


def test_it_shows_what_a_condition_skipped(demo: Run) -> None:
    """The timeline shows that a condition skipped the alert for the cheaper order."""
    assert re.search(r"skipped +high_value_alert +condition is false", demo.part("ada@example.com"))


@pytest.mark.parametrize("customer", ["nobody", "spendthrift"])
def test_it_shows_what_validation_cancelled(demo: Run, customer: str) -> None:
    """An empty order and one beyond the customer's credit are cancelled, and queue nothing."""
    part = demo.part(f"{customer}@example.com")
    assert re.search(r"cancelled +validate", part)
    assert "queued nothing" in part
    assert "audit" not in part


def test_it_shows_the_effects_of_valid_orders_only(demo: Run) -> None:
    """Each valid order has each effect; the cancelled ones have none."""
    effects = re.findall(r"effect +(\w+) +(\w+)@", demo.part("In the worker"))
    assert {(handler, name) for name in ("ada", "grace") for handler in HANDLERS} == set(effects)
    assert len(effects) == len(HANDLERS) * 2 + 1


def test_the_effects_name_processes_of_the_worker(demo: Run) -> None:
    """Each effect names a process of the worker."""
    pids = {int(pid) for pid in re.findall(r"in process (\d+)", demo.output)}
    assert pids
    assert demo.pid not in pids


def test_it_prints_no_escapes_into_a_pipe(demo: Run) -> None:
    """Output to a pipe has no colours."""
    assert "\x1b" not in demo.output


def test_it_leaves_no_worker(demo: Run) -> None:
    """The demo's worker has ended with it."""
    assert is_gone(demo.worker)


def test_a_missing_effect_fails_the_demo(without_mail: Run) -> None:
    """The demo exits with 1 if mails are refused, and names the two missing effects."""
    assert without_mail.code == 1
    result = without_mail.part("Result")
    assert len(re.findall(r"failed +demo +send_confirmation for order \S+ is missing", result)) == 2
    assert result.count("failed") == 2


def test_a_failed_demo_shows_the_workers_log(without_mail: Run) -> None:
    """A failed demo prints the end of the worker's log with the reason."""
    _, heading, log = without_mail.output.partition("\nThe end of the worker's log:\n")
    assert heading, without_mail.output
    assert "no mail today" in log


def test_a_failed_demo_leaves_no_worker(without_mail: Run) -> None:
    """The worker of a failed demo has ended with it."""
    assert is_gone(without_mail.worker)


def test_a_terminated_demo_leaves_no_worker() -> None:
    """SIGTERM to the demo ends its worker too."""
    process = start("-m", "examples.shop.demo")
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    run = end(process, first)
    assert run.code == 128 + signal.SIGTERM
    assert is_gone(run.worker)


@pytest.fixture
def order() -> Order:
    """A valid order of two items."""
    order = Order(customer_email="ada@example.com", credit=100)
    order.items = [OrderItem(product_id=name, quantity=1, price=10) for name in ("teapot", "cup")]
    return order


@pytest.fixture
def effects(order: Order) -> list[Effect]:
    """All expected effects of the order, done by the worker."""
    return [
        Effect(handler=handler, order=order_id, item=item, worker=WORKER, details="")
        for handler, order_id, item in expected_effects(order)
    ]


def test_an_order_has_an_effect_for_each_item(order: Order) -> None:
    """An order has three effects, and a withdrawal from stock for each item."""
    assert len(expected_effects(order)) == 3 + 2


def test_complete_effects_have_no_fault(order: Order, effects: list[Effect]) -> None:
    """Effects that each happened once in the worker have no fault."""
    assert find_faults(expected_effects(order), effects, EMITTER) == []


def test_each_missing_effect_is_a_fault(order: Order, effects: list[Effect]) -> None:
    """Each missing effect is named as a fault."""
    for missing in effects:
        (fault,) = find_faults(
            expected_effects(order), [effect for effect in effects if effect is not missing], EMITTER
        )
        assert missing.handler in fault
        assert "missing" in fault


def test_a_repeated_effect_is_a_fault(order: Order, effects: list[Effect]) -> None:
    """A repeated effect is a fault."""
    (fault,) = find_faults(expected_effects(order), [*effects, effects[0]], EMITTER)
    assert "2 times" in fault


def test_an_effect_of_a_cancelled_order_is_a_fault(order: Order, effects: list[Effect]) -> None:
    """An effect of a cancelled order is a fault."""
    unwanted = Effect(handler="notify_webhook", order="cancelled", worker=WORKER, details="")
    (fault,) = find_faults(expected_effects(order), [*effects, unwanted], EMITTER)
    assert "should not" in fault


def test_an_effect_in_the_emitter_is_a_fault(order: Order, effects: list[Effect]) -> None:
    """An effect in the emitter's process is a fault."""
    assert len(find_faults(expected_effects(order), effects, WORKER)) == len(effects)


@pytest.mark.parametrize(
    ("valid", "cancelled_by", "queued", "right"),
    [
        (True, None, HANDLERS, True),
        (True, None, HANDLERS[1:], False),
        (True, "shop.validate", (), False),
        (False, "shop.validate", (), True),
        (False, "shop.audit", (), False),
        (False, "shop.validate", HANDLERS, False),
        (False, None, (), False),
    ],
)
def test_the_emission_is_judged(
    order: Order, valid: bool, cancelled_by: str | None, queued: tuple[str, ...], right: bool
) -> None:
    """A valid order must queue all four handlers; an invalid one must be cancelled by validation and queue none."""
    emission = Emission.of("order-placed")
    emission.cancelled_by = cancelled_by
    emission.offloaded.update({f"shop.{handler}": "task" for handler in queued})
    assert (emission_faults(order, emission, valid) == []) is right


@pytest.mark.usefixtures("offloading")
def test_the_stock_is_judged() -> None:
    """The stock must be what the valid orders leave."""
    sales = Sales.prepare()
    assert len(stock_faults(sales)) == 2
    for product in sales.products:
        Product(**{**product.model_dump(), "stock": sales.expected_stock(product)}).save()
    assert stock_faults(sales) == []
