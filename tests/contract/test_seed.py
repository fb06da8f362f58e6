"""Each code block of the seed runs as written in a new process, with the effect that the text around it describes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SEED = Path(__file__).parents[3] / "shared" / "seed" / "event-driven-architecture.md"
pytestmark = pytest.mark.skipif(not SEED.exists(), reason=f"the seed is not there: {SEED}")

RUN = """
import ast, asyncio, json, sys

def run(source, name):
    \"\"\"Runs source as a script; source with a top-level await runs on a loop.\"\"\"
    code = compile(source, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    coroutine = eval(code, globals())
    if coroutine is not None:
        asyncio.run(coroutine)

"""
SUPPLIED_NAMES = """
from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.events import drain, emit, emit_async, event, on
from sqlmodel import Field, Relationship

effects = []

class Done:
    def __await__(self):
        return iter(())

class Service:
    def __init__(self, name):
        self.name = name

    def __getattr__(self, action):
        def act(*args, **kwargs):
            effects.append([self.name + "." + action, *args, *kwargs.values()])
            return Done()
        return act

EmailService, Analytics, InventoryService = Service("email"), Service("analytics"), Service("inventory")
WebhookService, PaymentService, TaxService = Service("webhook"), Service("payment"), Service("tax")
AuditLog = Service("audit")
order_placed = event("order-placed")

def report(*facts):
    drain()
    print(json.dumps([*facts, effects], default=str))

async def broadcast_to_clients(data):
    effects.append(["broadcast", data])
"""
ITEMS = """
class OrderItem(Entity, table=True):
    product_id: str
    quantity: int = 1
    order_id: str | None = Field(default=None, foreign_key="order.id")
"""
PLACE = """
order = Order(id="o1", customer_email="ada@example.com", total=12.5, items=[OrderItem(product_id="p1", quantity=2)])
order.place_order()
"""

Run = Callable[..., Any]


def blocks() -> list[str]:
    """Returns the code blocks in the order of the page."""
    return re.findall(r"^```python\n(.*?)^```", SEED.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block(start: str) -> str:
    """Returns the only code block with this line."""
    (only,) = (block for block in blocks() if start in block)
    return only


@pytest.fixture
def seed(fresh_process: Run) -> Run:
    """Runs a block between the names that it leaves out and a use of it, and returns the facts that the use reports."""

    def run(code: str, use: str = "report()", supplied: str = "") -> Any:
        pieces = {"supplied": SUPPLIED_NAMES + supplied, "seed": code, "use": use}
        source = RUN + "".join(f"run({piece!r}, {name!r})\n" for name, piece in pieces.items())
        process = fresh_process(source)
        assert process.returncode == 0, process.stderr
        assert "Traceback" not in process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    return run


def with_items(code: str) -> str:
    """Returns the block with the field `items`, which the page leaves out."""
    line = "    customer_email: str\n"
    assert line in code
    return code.replace(line, line + "    items: list[OrderItem] = Relationship()\n")


def test_every_block_is_tested_here() -> None:
    """The number of blocks is checked, so that a new block of the page gets a test."""
    assert len(blocks()) == 13


@pytest.mark.parametrize("number", range(13))
def test_block_runs_as_written(seed: Run, number: int) -> None:
    """A block runs unchanged if the names that it leaves out are supplied."""
    supplied = "order, user_id, User = 'an order', 'u1', type('User', (Service,), {})('user')\n"
    streams = "def process_items(sender): return []\nasync def async_stream(sender):\n    return\n    yield\n"
    seed(blocks()[number], supplied=supplied + streams)


def test_without_events_everything_happens_in_the_entity(seed: Run) -> None:
    """The page's counter-example without events runs all effects in the entity."""
    effects = seed(with_items(block("Business logic mixed")), PLACE + "report()", ITEMS)[-1]
    assert [name for name, *_ in effects] == [
        "email.send",
        "analytics.track",
        "inventory.reduce_stock",
        "webhook.notify",
    ]


def test_with_events_every_side_effect_happens_once(seed: Run) -> None:
    """Placing an order saves it and calls all four handlers once."""
    use = PLACE + "report(Order.get('o1').status)"
    status, effects = seed(with_items(block("Pure business logic")), use, ITEMS)
    assert status == "placed"
    by_name = {name: arguments for name, *arguments in effects}
    assert len(effects) == len(by_name) == 4
    assert by_name["email.send"] == ["ada@example.com", "Order confirmed"]
    assert by_name["analytics.track"] == ["order_placed", {"total": 12.5}]
    assert by_name["inventory.reduce_stock"] == ["p1", 2]
    assert by_name["webhook.notify"][1]["status"] == "placed"


def test_items_need_not_be_loaded_beforehand(seed: Run) -> None:
    """An async handler reads `sender.items` of an order whose items were not loaded."""
    use = PLACE + "drain()\neffects.clear()\nemit(order_placed, Order.get('o1'))\nreport()"
    effects = seed(with_items(block("Pure business logic")), use, ITEMS)[-1]
    assert ["inventory.reduce_stock", "p1", 2] in effects


@pytest.mark.parametrize(
    ("line", "use", "effect"),
    [
        ("def audit_trail", "emit('entity-updated', 'ada'); report()", ["audit.create", "ada", "updated"]),
        ("def notify_clients", "emit('todo-created', Todo(id='t1')); report()", ["broadcast", {"id": "t1"}]),
        ("def process_payment", "emit('order-placed', Sale()); report()", ["payment.charge", 7]),
    ],
)
def test_use_has_its_effect(seed: Run, line: str, use: str, effect: list[Any]) -> None:
    """Each use that the page recommends has its effect."""
    supplied = "class Todo(Entity): ...\nclass Sale:\n    total = 7\n"
    assert seed(block(line), use, supplied)[-1] == [effect]


def test_handler_can_refuse_an_order(seed: Run) -> None:
    """An exception of an inline handler reaches the emitter; the page advises against it."""
    use = (
        "class Sale:\n    total = -1\n"
        "try:\n    emit('order-placed', Sale())\nexcept ValueError as error:\n    report(str(error))"
    )
    assert seed(block("def validate_order(sender, **kwargs):\n    if sender.total"), use)[0] == "Invalid order"


def test_quick_example_prints_its_output_twice_in_a_row(fresh_process: Run) -> None:
    """The quick example prints its output in a new process, and again in a second one."""
    code = block("# 1. Define your event")
    output = [line.removeprefix("# ") for line in code.partition("# Output:\n")[2].splitlines()]
    assert len(output) == 2
    for _ in range(2):
        process = fresh_process(code)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.splitlines() == output


def test_all_four_handler_types_give_results(seed: Run) -> None:
    """Sync and async functions and generators give their results in the order of their declaration."""
    supplied = (
        "async def some_async_work(): ...\n"
        "def process_items(sender): return [1, 2]\n"
        "async def async_stream(sender):\n    yield 3\n    yield 4\n"
    )
    use = "results = asyncio.run(emit_async('event', 'ada'))\nreport(results)"
    results = seed(block("# Sync generator"), use, supplied)[0]
    assert results == ["result", "result", [1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("valid", "total", "cancelled", "skipped"),
    [(True, 101, False, []), (True, 100, False, ["high_value_alert"]), (False, 101, True, [])],
)
def test_priority_and_conditions_decide(
    seed: Run, valid: bool, total: int, cancelled: bool, skipped: list[str]
) -> None:
    """An invalid order is cancelled, and the alert runs only for orders over $100."""
    use = (
        f"class Sale:\n    total = {total}\n    def is_valid(self): return {valid}\n"
        "emission = emit('order-placed', Sale())\n"
        "skipped = [name.rpartition('.')[2] for name in emission.skipped]\n"
        "report((emission.cancelled_by or '').rpartition('.')[2], skipped)"
    )
    cancelled_by, skipped_names, _ = seed(block("# Higher priority executes first"), use)
    assert cancelled_by == ("validate_order" if cancelled else "")
    assert skipped_names == skipped


def test_async_emission_waits_for_all_handlers(seed: Run) -> None:
    """`results` holds the results of the awaited handlers."""
    supplied = "order = 'an order'\n@on(order_placed)\nasync def handler(sender):\n    return sender\n"
    assert seed(block("# Async emission"), "report(results)", supplied)[0] == ["an order"]


def test_page_names_the_file_of_the_events() -> None:
    """The file that the page names exists."""
    (path,) = re.findall(r"Reference: `([^:`]+)", SEED.read_text(encoding="utf-8"))
    assert (Path(__file__).parents[2] / path).exists()
