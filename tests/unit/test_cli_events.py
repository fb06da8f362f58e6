"""`nitro handlers` and `nitro explain`: contract section 10."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from sqlmodel import Field

from nitro import cli
from nitro.cli.events import HEADINGS
from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.events import Event, Namespace, on


class Hamper(Entity, table=True):
    """The entity that is the sender."""

    __tablename__ = "cli_hamper"

    total: float = 0.0


class LoyaltyCard(Entity, table=True):
    """An entity with a number as its id."""

    __tablename__ = "cli_coupon"

    id: int | None = Field(default=None, primary_key=True)  # type: ignore[assignment]  # another id than Entity's


def run(*arguments: str) -> Result:
    """Runs a command in this process; an unexpected error is raised."""
    return CliRunner().invoke(cli.nitro, arguments, catch_exceptions=False)


def as_json(*arguments: str) -> list[dict[str, Any]]:
    """Returns the rows that a command prints with `--json`."""
    found: list[dict[str, Any]] = json.loads(run(*arguments, "--json").stdout)
    return found


def handler(sender: object = None, **kwargs: object) -> None:
    """A sync handler."""


def other(sender: object = None, **kwargs: object) -> None:
    """A second sync handler."""


async def late(sender: object = None, **kwargs: object) -> None:
    """An async handler."""


def anyone(sender: object = None, **kwargs: object) -> None:
    """A handler of a glob."""


@pytest.fixture
def events(app: Celery) -> Iterator[Namespace]:
    """Events that the commands know while the test runs."""
    namespace = Namespace()
    yield namespace
    for event in [*namespace.events(), *namespace.globs.values()]:
        for function in (handler, other, late, anyone):
            event.disconnect(function)


@pytest.fixture
def sold(events: Namespace) -> Event:
    """An event with inline, async, conditional and offloaded handlers."""
    event = events.event("basket.sold")
    on(event, name="shop.audit")(late)
    on(event, name="shop.mail", sender=Hamper, offload={"delivery": "exactly-once", "queue": "mail"})(handler)
    on(event, name="shop.check", priority=5, condition=lambda sender, **kwargs: sender.total > 10)(other)
    return event


def test_handlers_are_listed_as_an_emit_takes_them(sold: Event) -> None:
    """The JSON has each handler's declaration, in the order of an emit."""
    assert as_json("handlers", "--event", "basket.sold") == [
        {
            "event": "basket.sold",
            "position": position,
            "where": where,
            "handler": name,
            "kind": kind,
            "priority": priority,
            "sender": sender,
            "condition": condition,
            "delivery": delivery,
            "options": options,
        }
        for position, (where, name, kind, priority, sender, condition, delivery, options) in enumerate(
            [
                ("inline", "shop.check", "sync", 5, None, True, None, {}),
                ("inline", "shop.audit", "async", 0, None, False, None, {}),
                ("queue", "shop.mail", "sync", 0, "Hamper", False, "exactly-once", {"queue": "mail"}),
            ],
            1,
        )
    ]


def test_handlers_are_a_table(sold: Event) -> None:
    """The table has a line for each handler."""
    first, *lines = run("handlers", "--event", "basket.sold").stdout.splitlines()
    assert first.split() == list(HEADINGS)
    assert [line.split()[3] for line in lines] == ["shop.check", "shop.audit", "shop.mail"]
    assert lines[2].endswith("Hamper  -          exactly-once  queue=mail")


def test_all_events_are_listed_by_name(sold: Event, events: Namespace) -> None:
    """The list includes globs and leaves out events without handlers."""
    on(events.event("basket.*"), name="shop.all")(anyone)
    events.event("basket.unheard")
    on(events.event("basket.left"), name="shop.left")(late)
    listed = [(row["event"], row["handler"]) for row in as_json("handlers") if row["event"].startswith("basket.")]
    assert listed == [
        ("basket.*", "shop.all"),
        ("basket.left", "shop.all"),
        ("basket.left", "shop.left"),
        ("basket.sold", "shop.check"),
        ("basket.sold", "shop.audit"),
        ("basket.sold", "shop.all"),
        ("basket.sold", "shop.mail"),
    ]


@pytest.mark.parametrize(
    ("sender", "shown"),
    [(Hamper, "Hamper"), ("ada", "'ada'"), (7, "7"), (lambda: Hamper(id="b1"), "Hamper:b1"), (object, "one object")],
)
def test_the_sender_is_named(events: Namespace, sender: Any, shown: str) -> None:
    """An entity is shown as class and id."""
    made = sender if sender is Hamper or not callable(sender) else sender()
    on(events.event("basket.heard"), sender=made)(handler)
    assert as_json("handlers", "--event", "basket.heard")[0]["sender"] == shown


def test_an_unknown_event_is_an_error(sold: Event) -> None:
    """The error suggests the nearest event name."""
    for command in ("explain", "handlers"):
        failed = run(command, *(["--event"] if command == "handlers" else []), "basket.sodl")
        assert failed.exit_code == 1
        assert "no handler hears an event 'basket.sodl'; did you mean 'basket.sold'?" in failed.stderr


def test_explain_says_what_an_emit_would_do(sold: Event) -> None:
    """The sender is read from its row; nothing runs."""
    Hamper(id="b1", total=5.0).save()
    verdicts = as_json("explain", "basket.sold", "--sender", "Hamper:b1", "--kwargs", '{"source": "web"}')
    assert [(each["handler"], each["where"], each["runs"]) for each in verdicts] == [
        ("shop.check", "inline", False),
        ("shop.audit", "inline", True),
        ("shop.mail", "queue", True),
    ]
    assert verdicts[2]["delivery"] == "exactly-once"
    assert verdicts[2]["payload_size"] > 0
    Hamper(id="b2", total=50.0).save()
    told = run("explain", "basket.sold", "--sender", f"{__name__}.Hamper:b2").stdout
    assert told.splitlines()[:2] == ["basket.sold", "  1. inline  shop.check  sync  priority 5  holds"]


def test_a_sender_may_be_a_text_and_an_id_a_number(events: Namespace) -> None:
    """Explain accepts the same senders as an emit: a text, and an entity with a number as id."""
    on(events.event("ticket.closed"), sender="ada", name="shop.text")(handler)
    on(events.event("ticket.closed"), sender=LoyaltyCard(id=7), name="shop.number")(other)
    LoyaltyCard(id=7).save()
    assert [each["handler"] for each in as_json("explain", "ticket.closed", "--sender", "ada")] == ["shop.text"]
    assert [each["handler"] for each in as_json("explain", "ticket.closed", "--sender", "LoyaltyCard:7")] == [
        "shop.number"
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--sender", "Hamper:gone"], 1, "there is no Hamper with the id gone"),
        (["--sender", "Hmaper:b1"], 1, "entities named Hmaper: none; give one as module.Class:id"),
        (["--sender", "LoyaltyCard:x"], 1, "LoyaltyCard:x: Input should be a valid integer"),
        (["--kwargs", "source=web"], 2, "is no JSON"),
        (["--kwargs", "[1]"], 2, "is no JSON object"),
    ],
)
def test_what_is_wrong_is_named(sold: Event, arguments: list[str], code: int, says: str) -> None:
    """The error names the wrong argument, and its kind decides the exit code."""
    failed = run("explain", "basket.sold", *arguments)
    assert failed.exit_code == code
    assert says in failed.stderr


def test_a_handler_that_does_not_take_it_is_one_line(events: Namespace, make_app: Callable[..., Celery]) -> None:
    """The error is the one that an emit would raise."""

    def strict(sender: object, source: str) -> None: ...

    event = events.event("basket.strict")
    on(event, offload=True, name="shop.strict")(strict)
    failed = run("explain", "basket.strict")
    event.disconnect(strict)
    assert failed.exit_code == 1
    assert failed.stderr.startswith("Error: handler shop.strict does not take what was emitted")


def test_no_text_can_steer_the_terminal(events: Namespace) -> None:
    """Control characters in a condition's error or in an option are escaped."""

    def red(*_: object, **__: object) -> bool:
        raise LookupError("no\n  2. inline  \x1b[31mforged")

    event = events.event("basket.forged")
    on(event, name="shop.red", condition=red)(other)
    on(event, name="shop.mail", offload={"queue": "\x1b[31mmail"})(handler)
    for told in (run("explain", event.name).stdout, run("handlers", "--event", event.name).stdout):
        assert "\x1b" not in told
        assert "\\x1b[31m" in told
        assert len(told.splitlines()) == 3
