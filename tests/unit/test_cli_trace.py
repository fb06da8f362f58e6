"""`nitro trace`: contract section 10."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from xml.etree.ElementTree import fromstring

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from nitro import cli
from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.database import transaction, write_connection
from nitro.infrastructure.events import Emission, Event, Namespace, emit, on
from nitro.infrastructure.events.observers import active_observers
from nitro.infrastructure.outbox import claims, operations, pending
from nitro.infrastructure.outbox.journal import journal
from nitro.infrastructure.outbox.schema import deliveries


class Basket(Entity):
    """The entity that is the sender."""

    __nitro_show__: ClassVar[tuple[str, ...]] = ("status",)

    status: str = "open"
    email: str = "ada@example.com"


@pytest.fixture
def events(app: Celery) -> Namespace:
    """An empty namespace; deliveries are queued in memory."""
    return Namespace()


@pytest.fixture
def placed(events: Namespace) -> Event:
    """The event `order.placed`."""
    return events.event("order.placed")


@pytest.fixture
def journaled(events: Namespace) -> Iterator[None]:
    """Switches the journal on for the test."""
    with active_observers.replaced(*active_observers, journal.watch):
        yield
    journal.flush(20)


def trace(*arguments: object, colour: bool = False) -> Result:
    """Runs `nitro trace`."""
    return CliRunner().invoke(cli.nitro, ["trace", *map(str, arguments)], catch_exceptions=False, color=colour)


def as_json(*arguments: object) -> list[dict[str, Any]]:
    """Returns the trees that the command prints with `--json`."""
    found: list[dict[str, Any]] = json.loads(trace(*arguments, "--json").stdout)
    return found


def offloaded(event: Event, name: str, **options: Any) -> None:
    """Connects a handler that runs in a worker."""
    on(event, offload=options or True, name=name)(lambda *args, **kwargs: None)


def run(emission: Emission, handler: str, error: str | None = None, *, last: bool = True) -> None:
    """Runs a delivery as a worker does: to its end, to a final error, or to an error that is retried."""
    pending.take_due(10)
    started = claims.claim(emission.id, handler, "boot/1")
    assert isinstance(started, claims.Claim)
    if error is None:
        claims.finish(started)
    elif last:
        claims.dead_letter(started, error)
    else:
        claims.reschedule(started, 0, error)


def test_it_tells_of_each_handler(placed: Event) -> None:
    """Inline handlers have their time, skipped handlers their reason, offloaded handlers each step."""
    on(placed, name="shop.check", priority=1)(lambda sender: True)
    on(placed, name="shop.alert", condition=lambda sender: False)(lambda sender: None)
    offloaded(placed, "shop.mail")
    emission = emit(placed, Basket(id="b1"))
    run(emission, "shop.mail", "SMTPError: try later", last=False)
    run(emission, "shop.mail")
    head, check, alert, mail = trace(emission.id).stdout.splitlines()
    assert re.fullmatch(r"order\.placed by Basket:b1 status='open'  [\d-]+ [\d:.]+ UTC  \S+/\d+  " + emission.id, head)
    assert re.fullmatch(r"├─ inline shop\.check  done  took [\d.e-]+ ms", check)
    assert alert == "├─ inline shop.alert  skipped  condition is false"
    steps = r"running \(run 1\) .* → retried \(run 1\) \(SMTPError: try later\) .* → running \(run 2\) .* → done .*"
    assert re.fullmatch(r"└─ queue  shop\.mail  done  .*" + steps, mail)


def test_a_skipped_handler_of_the_queue_is_one(placed: Event) -> None:
    """A skipped offloaded handler is shown as one of the queue, a skipped inline handler as inline."""
    offloaded(placed, "shop.mail")
    on(placed, offload=True, name="shop.text", condition=lambda sender: False)(lambda sender: None)
    on(placed, name="shop.alert", condition=lambda sender: False)(lambda sender: None)
    emission = emit(placed, Basket(id="b1"))
    _, alert, text, _ = trace(emission.id).stdout.splitlines()
    assert alert == "├─ inline shop.alert  skipped  condition is false"
    assert text == "├─ queue  shop.text  skipped  condition is false"


def test_retries_that_repeat_one_error_are_one_step(placed: Event) -> None:
    """Errors that differ in numbers only are one step; another error is a further step."""
    offloaded(placed, "shop.mail")
    emission = emit(placed, Basket(id="b1"))
    for error in ("OSError: port 1", "OSError: port 2", "OSError: port 3", "ValueError: no"):
        run(emission, "shop.mail", error, last=False)
    run(emission, "shop.mail")
    mail = trace(emission.id).stdout.splitlines()[-1]
    retries = (
        r"retried \(runs 1 to 3\) \(OSError: port 3\) \S+ ms → running \(run 4\) .* → retried \(run 4\) \(ValueError"
    )
    assert re.search(r"running \(run 1\) \S+ ms → " + retries, mail)
    assert "(run 2)" not in mail


def test_what_is_published_in_the_end_is_not_said_to_be_unpublished(placed: Event) -> None:
    """The next publication clears the error of a failed publication, and keeps the error of a run."""
    offloaded(placed, "shop.mail")
    emission = emit(placed, Basket(id="b1"))
    with write_connection() as connection:
        connection.execute(deliveries.update().values(state="waiting", due_at=0.0))
    pending.requeue_unconfirmed(pending.take_due(10), ConnectionError("away"), "unsent")
    assert "not published: ConnectionError: away" in trace(emission.id).stdout
    pending.take_due(10)
    assert "not published" not in trace(emission.id).stdout
    run(emission, "shop.mail", "OSError: no mail", last=False)
    pending.take_due(10)
    assert trace(emission.id).stdout.rstrip().endswith(": OSError: no mail")


def test_a_dead_letter_says_why(placed: Event) -> None:
    """A dead letter shows the line of its exception."""
    offloaded(placed, "shop.mail")
    emission = emit(placed, "ada")
    run(emission, "shop.mail", 'Traceback (most recent call last):\n  File "x"\nValueError: no\nmore')
    assert trace(emission.id).stdout.splitlines()[-1].endswith(": ValueError: no")


@pytest.mark.parametrize("known", ["emission", "delivery", "child", "entity"])
def test_a_tree_is_found_by_all_that_is_in_it(placed: Event, events: Namespace, known: str) -> None:
    """Any id of the tree shows the whole tree; an emission of a handler is below the handler."""
    further = events.event("mail.sent")
    offloaded(placed, "shop.mail")
    offloaded(further, "shop.count")
    basket = Basket(id="b2")
    children: list[Emission] = []
    on(placed, name="shop.log")(lambda sender: children.append(emit(further, "log")))
    emission = emit(placed, basket)
    (child,) = children
    ids = {
        "emission": emission.id,
        "delivery": emission.offloaded["shop.mail"],
        "child": child.id,
        "entity": "Basket:b2",
    }
    head, log, below, count, mail = trace(ids[known]).stdout.splitlines()
    assert (head.split("  ")[0], log.split("  ")[0]) == (
        "order.placed by Basket:b2 status='open'",
        "├─ inline shop.log",
    )
    assert below.startswith("│  └─ mail.sent by str")
    assert count.startswith("│     └─ queue  shop.count")
    assert mail.startswith("└─ queue  shop.mail")


def test_an_entitys_emissions_are_limited_to_the_latest(placed: Event) -> None:
    """`--limit` keeps the latest emissions, earliest first; `--since` leaves out earlier emissions."""
    offloaded(placed, "shop.mail")
    emissions = [emit(placed, Basket(id="b3")) for _ in range(3)]
    assert [tree["id"] for tree in as_json("Basket:b3", "--limit", 2)] == [each.id for each in emissions[1:]]
    assert trace("Basket:b3", "--limit", 2).stderr.startswith(
        "only the latest 2 emissions, and those below them, are shown"
    )
    assert trace("Basket:b3", "--limit", 3).stderr == ""
    refused = trace("Basket:b3", "--since", "0s")
    assert (refused.exit_code, "has emitted nothing since" in refused.stderr) == (1, True)


def test_an_unknown_one_is_an_error(placed: Event) -> None:
    """The error recommends NITRO_JOURNAL=on."""
    found = trace("Basket:none")
    assert found.exit_code == 1
    assert "nothing is recorded of Basket:none" in found.stderr
    assert "NITRO_JOURNAL=on" in found.stderr


def test_the_journal_tells_of_what_queued_nothing(placed: Event, journaled: None) -> None:
    """The journal has emissions that were cancelled, that raised, and that queued without a row."""
    outcome: list[Any] = [False]
    on(placed, name="shop.check")(lambda sender: outcome[0])
    offloaded(placed, "shop.plain", delivery="broker")
    cancelled = emit(placed, Basket(id="b4"))
    outcome[0] = None
    plain = emit(placed, Basket(id="b4"))
    on(placed, name="shop.fail")(lambda sender: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        emit(placed, Basket(id="b4"))
    journal.flush(20)
    text = trace("Basket:b4").stdout
    assert "└─ inline shop.check  cancelled  took" in text
    assert f"└─ queue  shop.plain  queued  broker, left to the broker; task {plain.offloaded['shop.plain']}" in text
    assert "raised ZeroDivisionError: division by zero" in text
    assert "└─ inline shop.fail  raised  took" in text
    assert cancelled.id in text


def test_a_rolled_back_emission_is_not_there(placed: Event) -> None:
    """A rolled-back emission leaves no record."""
    offloaded(placed, "shop.mail")
    with pytest.raises(InterruptedError), transaction():
        emission = emit(placed, "ada")
        raise InterruptedError
    assert trace(emission.id).exit_code == 1


def test_texts_cannot_steer_a_terminal(events: Namespace) -> None:
    """Control characters in the event's name and in an exception are escaped."""
    event = events.event("evil\x1bcforged\nline")
    offloaded(event, "shop.mail")
    emission = emit(event, "ada")
    run(emission, "shop.mail", "ValueError: \x1b[31m")
    for form in ("text", "html", "json"):
        assert "\x1b" not in trace(emission.id, "--format", form).stdout


def test_colours_are_for_terminals(placed: Event) -> None:
    """A pipe gets plain text."""
    offloaded(placed, "shop.mail")
    emission = emit(placed, "ada")
    assert "\x1b[" not in trace(emission.id).stdout
    assert "\x1b[33mqueued\x1b[0m" in trace(emission.id, colour=True).stdout


def test_a_page_is_one_file_without_scripts(events: Namespace, tmp_path: Path) -> None:
    """The page escapes all texts and loads no other files."""
    event = events.event("<script>alert(1)</script>")
    offloaded(event, "shop.mail")
    emission = emit(event, Basket(id="<b>", status="&amp;"))
    run(emission, "shop.mail", "ValueError: </div><img src=x>")
    file = tmp_path / "trace.html"
    written = trace(emission.id, "--format", "html", "-o", file)
    assert (written.exit_code, written.stdout, written.stderr) == (0, "", f"written: {file}\n")
    page = file.read_text()
    assert not re.search(r"<script|<img|https?:|src=\"|@import|url\(", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; by Basket:&lt;b&gt;" in page
    body = fromstring(page[page.index("<body") : page.index("</body>") + len("</body>")])
    bars = [each.get("class") for each in body.iter("div") if (each.get("class") or "").startswith("bar ")]
    assert bars == ["bar ", "bar wait", "bar dead"]


def test_a_file_that_cannot_be_written_is_an_error(placed: Event, tmp_path: Path) -> None:
    """The error names the file."""
    offloaded(placed, "shop.mail")
    emission = emit(placed, "ada")
    failed = trace(emission.id, "-o", tmp_path / "none" / "trace.txt")
    assert failed.exit_code == 1
    assert "trace.txt" in failed.stderr


def test_what_waits_says_until_when(placed: Event) -> None:
    """A waiting delivery shows the time at which its countdown ends."""
    offloaded(placed, "shop.later", countdown=600)
    emission = emit(placed, "ada")
    assert re.search(r"shop\.later  waiting  waiting \(until \d\d:\d\d:\d\d\)", trace(emission.id).stdout)
    (tree,) = as_json(emission.id)
    assert tree["deliveries"][0]["due"] is not None
    assert operations.discard(operations.has_id_in([emission.id])) == 1
    assert "shop.later  cancelled" in trace(emission.id).stdout
