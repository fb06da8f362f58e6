"""Each code block of the seed runs as written, in a fresh process, and does what the text around it says."""

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
    \"\"\"Run source as a script; only where it awaits, on a loop.\"\"\"
    code = compile(source, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    waiting = eval(code, globals())
    if waiting is not None:
        asyncio.run(waiting)

"""
GIVEN = """
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

def tell(*facts):
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
    """The code blocks, in the order of the page."""
    return re.findall(r"^```python\n(.*?)^```", SEED.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block(start: str) -> str:
    """The one code block that has this line."""
    (found,) = (block for block in blocks() if start in block)
    return found


@pytest.fixture
def seed(fresh_process: Run) -> Run:
    """Runs a block, after what it leaves out and before some use of it; gives what the use told."""

    def run(code: str, use: str = "tell()", given: str = "") -> Any:
        pieces = {"given": GIVEN + given, "seed": code, "use": use}
        source = RUN + "".join(f"run({piece!r}, {name!r})\n" for name, piece in pieces.items())
        ended = fresh_process(source)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    return run


def with_items(code: str) -> str:
    """The block with the field that it leaves out."""
    line = "    customer_email: str\n"
    assert line in code
    return code.replace(line, line + "    items: list[OrderItem] = Relationship()\n")


def test_every_block_is_tested_here() -> None:
    """A block that is added to the page needs a test."""
    assert len(blocks()) == 13


@pytest.mark.parametrize("number", range(13))
def test_block_runs_as_written(seed: Run, number: int) -> None:
    """With the names that it leaves out, and nothing else changed."""
    given = "order, user_id, User = 'an order', 'u1', type('User', (Service,), {})('user')\n"
    streams = "def process_items(sender): return []\nasync def async_stream(sender):\n    return\n    yield\n"
    seed(blocks()[number], given=given + streams)


def test_without_events_everything_happens_in_the_entity(seed: Run) -> None:
    """The page's counter-example works too."""
    effects = seed(with_items(block("Business logic mixed")), PLACE + "tell()", ITEMS)[-1]
    assert [name for name, *_ in effects] == [
        "email.send",
        "analytics.track",
        "inventory.reduce_stock",
        "webhook.notify",
    ]


def test_with_events_every_side_effect_happens_once(seed: Run) -> None:
    """Placing an order saves it and reaches all four handlers."""
    use = PLACE + "tell(Order.get('o1').status)"
    status, effects = seed(with_items(block("Pure business logic")), use, ITEMS)
    assert status == "placed"
    by_name = {name: arguments for name, *arguments in effects}
    assert len(effects) == len(by_name) == 4
    assert by_name["email.send"] == ["ada@example.com", "Order confirmed"]
    assert by_name["analytics.track"] == ["order_placed", {"total": 12.5}]
    assert by_name["inventory.reduce_stock"] == ["p1", 2]
    assert by_name["webhook.notify"][1]["status"] == "placed"


def test_items_need_not_be_loaded_beforehand(seed: Run) -> None:
    """An async handler reads `sender.items` of an order that was only fetched."""
    use = PLACE + "drain()\neffects.clear()\nemit(order_placed, Order.get('o1'))\ntell()"
    effects = seed(with_items(block("Pure business logic")), use, ITEMS)[-1]
    assert ["inventory.reduce_stock", "p1", 2] in effects


@pytest.mark.parametrize(
    ("line", "use", "effect"),
    [
        ("def audit_trail", "emit('entity-updated', 'ada'); tell()", ["audit.create", "ada", "updated"]),
        ("def notify_clients", "emit('todo-created', Todo(id='t1')); tell()", ["broadcast", {"id": "t1"}]),
        ("def process_payment", "emit('order-placed', Sale()); tell()", ["payment.charge", 7]),
    ],
)
def test_use_has_its_effect(seed: Run, line: str, use: str, effect: list[Any]) -> None:
    """Each use that the page recommends does what it says."""
    given = "class Todo(Entity): ...\nclass Sale:\n    total = 7\n"
    assert seed(block(line), use, given)[-1] == [effect]


def test_handler_can_refuse_an_order(seed: Run) -> None:
    """The page advises against it, and it works: the exception reaches the emitter."""
    use = (
        "class Sale:\n    total = -1\n"
        "try:\n    emit('order-placed', Sale())\nexcept ValueError as error:\n    tell(str(error))"
    )
    assert seed(block("def validate_order(sender, **kwargs):\n    if sender.total"), use)[0] == "Invalid order"


def test_quick_example_prints_its_output_twice_in_a_row(fresh_process: Run) -> None:
    """Literally as written, with no name supplied, on a fresh machine and again on the same one."""
    code = block("# 1. Define your event")
    output = [line.removeprefix("# ") for line in code.partition("# Output:\n")[2].splitlines()]
    assert len(output) == 2
    for _ in range(2):
        ended = fresh_process(code)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.splitlines() == output


def test_all_four_handler_types_give_results(seed: Run) -> None:
    """Functions and generators, sync and async, in the order they were declared."""
    given = (
        "async def some_async_work(): ...\n"
        "def process_items(sender): return [1, 2]\n"
        "async def async_stream(sender):\n    yield 3\n    yield 4\n"
    )
    use = "results = asyncio.run(emit_async('event', 'ada'))\ntell(results)"
    results = seed(block("# Sync generator"), use, given)[0]
    assert results == ["result", "result", [1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("valid", "total", "cancelled", "skipped"),
    [(True, 101, False, []), (True, 100, False, ["high_value_alert"]), (False, 101, True, [])],
)
def test_priority_and_conditions_decide(
    seed: Run, valid: bool, total: int, cancelled: bool, skipped: list[str]
) -> None:
    """An invalid order goes no further, and the alert is only for orders over $100."""
    use = (
        f"class Sale:\n    total = {total}\n    def is_valid(self): return {valid}\n"
        "emission = emit('order-placed', Sale())\n"
        "tell((emission.cancelled_by or '').rpartition('.')[2], [name.rpartition('.')[2] for name in emission.skipped])"
    )
    by, left_out, _ = seed(block("# Higher priority executes first"), use)
    assert by == ("validate_order" if cancelled else "")
    assert left_out == skipped


def test_async_emission_waits_for_all_handlers(seed: Run) -> None:
    """`results` holds what the awaited handlers returned."""
    given = "order = 'an order'\n@on(order_placed)\nasync def handler(sender):\n    return sender\n"
    assert seed(block("# Async emission"), "tell(results)", given)[0] == ["an order"]


def test_page_names_the_file_of_the_events() -> None:
    """The reference in the text leads to a file that exists."""
    (path,) = re.findall(r"Reference: `([^:`]+)", SEED.read_text(encoding="utf-8"))
    assert (Path(__file__).parents[2] / path).exists()
