"""`nitro trace`: the emissions that it finds, and its JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from sqlalchemy import insert
from uuid_utils import uuid7

from nitro import cli
from nitro.infrastructure.database import create_tables, write_connection
from nitro.infrastructure.events import Event, Namespace, emit, on
from nitro.infrastructure.outbox import claims, pending
from nitro.infrastructure.outbox.schema import emissions
from support.schemas import TREES

UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Json = dict[str, Any]


def trace(*arguments: object) -> Result:
    """Runs `nitro trace`; an unexpected error is raised."""
    return CliRunner().invoke(cli.nitro, ["trace", *map(str, arguments)], catch_exceptions=False)


def trees(*arguments: object) -> list[Json]:
    """Returns the trees that the command prints with `--json`, and checks them against the published schema."""
    shown = trace(*arguments, "--json")
    assert shown.exit_code == 0, shown.stderr
    found: list[Json] = json.loads(shown.stdout)
    Draft202012Validator(TREES).validate(found)
    return found


def recorded(sender: str = "str", **causes: Any) -> str:
    """Records an emission without a story; returns its id."""
    identity = str(uuid7())
    with write_connection() as connection:
        connection.execute(insert(emissions).values(id=identity, event="placed", sender=sender, **causes))
    return identity


@pytest.fixture
def tables(database_each: str) -> str:
    """The tables, in an empty database of each kind."""
    create_tables()
    return database_each


@pytest.fixture
def placed(app: Celery) -> Event:
    """An event with deliveries of every sort."""
    event = Namespace().event("order.placed")
    on(event, name="shop.check")(lambda sender: None)
    on(event, name="shop.alert", condition=lambda sender: False)(lambda sender: None)
    on(event, name="shop.mail", offload=True)(lambda sender: None)
    on(event, name="shop.plain", offload={"delivery": "broker"})(lambda sender: None)
    on(event, name="shop.later", offload={"countdown": 600})(lambda sender: None)
    return event


def run(emission: str, end: Callable[[claims.Claim], None]) -> None:
    """Runs the delivery to `shop.mail` with this end."""
    pending.take_due(10)
    started = claims.claim(emission, "shop.mail", "boot/1")
    assert isinstance(started, claims.Claim)
    end(started)


def test_json_has_a_shape_that_a_script_can_rely_on(placed: Event) -> None:
    """The JSON fits its schema in every state of the deliveries."""
    emission = emit(placed, "ada").id
    trees(emission)
    run(emission, lambda claim: claims.reschedule(claim, 0, "OSError: away"))
    trees(emission)
    run(emission, lambda claim: claims.dead_letter(claim, "OSError: for good"))
    (tree,) = trees(emission)
    assert {turn["handler"]: turn["outcome"] for turn in tree["turns"]} == {
        "shop.check": "done",
        "shop.alert": "skipped",
        "shop.plain": "queued",
    }
    states = {entry["handler"]: entry["state"] for entry in tree["deliveries"]}
    assert states == {"shop.mail": "dead", "shop.later": "waiting"}
    (mail,) = [entry for entry in tree["deliveries"] if entry["handler"] == "shop.mail"]
    assert [(one["run"], one["why"]) for one in mail["history"]] == [(1, "OSError: away")]


def test_json_is_the_same_by_either_name(placed: Event, tmp_path: Path) -> None:
    """`--json` and `--format json` print the same, also into a file."""
    emission = emit(placed, "ada").id
    file = tmp_path / "trace.json"
    trace(emission, "--json", "-o", file)
    assert trees(emission) == json.loads(trace(emission, "--format", "json").stdout) == json.loads(file.read_text())


def test_an_entity_is_found_exactly(tables: str) -> None:
    """Similar ids, other capitals and wildcard characters do not match."""
    mine = [recorded("Order:o_1"), recorded("Order:o_1 status='open' total=5")]
    for other in ("Order:o_10", "Order:O_1", "Order:O_1 status='open'", "Order:ox1 status='open'", "order:o_1", "o_1"):
        recorded(other)
    assert [tree["id"] for tree in trees("Order:o_1")] == mine


def test_what_an_entity_caused_is_not_shown_twice(tables: str) -> None:
    """An emission below another emission of the entity is shown there only; emissions of others above are not."""
    root = recorded("str")
    first = recorded("Order:o1", root=root, parent=root)
    second = recorded("Order:o1", root=root, parent=first)
    third = recorded("Bill:b1", root=root, parent=second)
    (tree,) = trees("Order:o1")
    assert (tree["id"], tree["children"][0]["id"], tree["children"][0]["children"][0]["id"]) == (first, second, third)


@pytest.mark.parametrize("known", ["first", "second", "grandchild"])
def test_without_its_root_a_family_is_several_trees(tables: str, known: str) -> None:
    """The root has no row if the journal is off there or the row is deleted."""
    root = str(uuid7())
    first = recorded(root=root, parent=root)
    second = recorded(root=root, parent=root)
    grandchild = recorded(root=root, parent=second)
    recorded()
    ids = {"first": first, "second": second, "grandchild": grandchild}
    found = trees(ids[known])
    assert [tree["id"] for tree in found] == [first, second]
    assert [child["id"] for child in found[1]["children"]] == [grandchild]


def test_siblings_come_in_the_order_of_their_emission(tables: str) -> None:
    """Siblings are shown with the earliest first."""
    root = recorded()
    children = [recorded(root=root, parent=root) for _ in range(5)]
    (tree,) = trees(children[3])
    assert [child["id"] for child in tree["children"]] == children


def test_a_chain_may_be_long(tables: str) -> None:
    """A chain of a hundred emissions is shown whole, in each format."""
    chain = [recorded()]
    for _ in range(99):
        chain.append(recorded(root=chain[0], parent=chain[-1]))
    assert len(trace(chain[50]).stdout.splitlines()) == 100
    for form in ("json", "html"):
        shown = trace(chain[50], "--format", form)
        assert (shown.exit_code, chain[-1] in shown.stdout) == (0, True)


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_a_chain_that_is_longer_still_goes_on_in_further_trees(tables: str, form: str) -> None:
    """Each further tree names its parent, so no emission is lost, and a warning reports the split."""
    chain = [str(uuid7()) for _ in range(2000)]
    facts = {"event": "placed", "sender": "Order:o1", "root": chain[0]}
    rows = [{**facts, "id": mine, "parent": parent} for parent, mine in pairwise(chain)]
    with write_connection() as connection:
        connection.execute(insert(emissions), [{**facts, "id": chain[0], "root": None, "parent": None}, *rows])
    for what in (chain[1500], "Order:o1"):
        shown = trace(what, "--format", form, "--limit", 2000)
        assert (shown.exit_code, "after 100 levels" in shown.stderr) == (0, True)
        assert set(chain) <= set(UUID.findall(shown.stdout))
    if form == "json":
        found = json.loads(shown.stdout)
        assert [(tree["id"], tree["parent"]) for tree in found[1:]] == [
            (chain[first], chain[first - 1]) for first in range(100, 2000, 100)
        ]
    elif form == "text":
        assert shown.stdout.count(f"below {chain[99]}") == 1


def test_a_tree_that_is_whole_says_so_by_silence(tables: str) -> None:
    """A tree whose parent is not shown still names its parent, without a warning."""
    root = recorded()
    recorded("Order:o1", root=root, parent=root)
    shown = trace("Order:o1")
    assert (f"below {root}" in shown.stdout, shown.stderr) == (True, "")


def test_an_emission_without_a_story_tells_when_it_was_made(tables: str) -> None:
    """The time comes from the id; unknown times stay empty."""
    before = datetime.now(UTC)
    (tree,) = trees(recorded())
    assert abs((datetime.fromisoformat(tree["at"]) - before).total_seconds()) < 5
    assert (tree["took"], tree["process"], tree["turns"]) == (None, None, [])


@pytest.mark.parametrize("what", ["nothing", "0192f0c1-7a00-7000-8000-000000000000", "Order:none", ":", "'; DROP"])
def test_what_is_not_there_is_an_error(tables: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one line; it recommends the journal only if the journal is off."""
    recorded()
    failed = trace(what)
    assert (failed.exit_code, failed.stdout) == (1, "")
    hint = "emissions without tracked deliveries are recorded with NITRO_JOURNAL=on"
    assert failed.stderr == f"Error: nothing is recorded of {what}; {hint}\n"
    monkeypatch.setenv("NITRO_JOURNAL", "on")
    assert trace(what).stderr == f"Error: nothing is recorded of {what}\n"


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--since", "yesterday"], ["--format", "svg"], []])
def test_a_wrong_option_is_a_usage_error(tables: str, arguments: list[str]) -> None:
    """The exit code is 2, as for any command."""
    assert trace(*(["Order:o1", *arguments] if arguments else [])).exit_code == 2
