"""Each command runs as a process beside a real worker on each stack, and its JSON follows its schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from stacks import Stack
from support import schemas
from worker import Worker, until


def run_json(stack: Stack, schema: schemas.Schema, *arguments: object) -> Any:
    """Runs a `nitro` command with `--json`, and returns its value after a check against the schema."""
    return parse(stack.project.celery("nitro", *arguments, "--json"), schema)


def parse(text: str, schema: schemas.Schema) -> Any:
    """Returns the value of a JSON text after a check against the schema."""
    value = json.loads(text)
    Draft202012Validator(schema).validate(value)
    return value


@pytest.fixture
def chained(stack: Stack, worker: Worker, key: str) -> str:
    """The id of an emission whose handler has emitted again; both deliveries are done."""
    emission = str(stack.emit("chained", key)["id"])
    stack.effect(key, count=2)
    family = "SELECT state FROM nitro_delivery JOIN nitro_emission e ON e.id = emission WHERE :id IN (e.id, e.root)"
    until(lambda: [row.state for row in stack.rows(family, id=emission)] == ["done", "done"])
    return emission


def test_init_may_be_called_again(stack: Stack) -> None:
    """`init` leaves existing tables as they are."""
    assert stack.project.celery("nitro", "init").startswith("tables are there: ")


def test_handlers_lists_what_an_emit_would_take(stack: Stack) -> None:
    """`handlers` lists the handlers of an event in their order, inline before queued ones."""
    rows = run_json(stack, schemas.HANDLERS, "handlers", "--event", "parked")
    assert [(row["position"], row["where"], row["handler"]) for row in rows] == [
        (1, "inline", "project.handlers.gate"),
        (2, "queue", "project.handlers.parked"),
    ]
    assert rows[1]["options"] == {"queue": "parked"}


def test_explain_runs_no_handler(stack: Stack, key: str) -> None:
    """`explain` reports what an emit would do, and runs no handler."""
    verdicts = run_json(
        stack, schemas.VERDICTS, "explain", "parked", "--sender", "ada", "--kwargs", json.dumps({"key": key})
    )
    assert [(verdict["where"], verdict["runs"]) for verdict in verdicts] == [("inline", True), ("queue", True)]
    assert verdicts[1]["payload_size"] > len(key)
    assert stack.effects(key) == []


@pytest.mark.parametrize(("form", "begin"), [("mermaid", "flowchart LR"), ("dot", "digraph"), ("svg", "<?xml")])
def test_graph_draws_the_handlers(stack: Stack, form: str, begin: str) -> None:
    """`graph` draws events and handlers in each format."""
    drawing = stack.project.celery("nitro", "graph", "--event", "parked", "--format", form)
    assert drawing.startswith(begin)
    assert "project.handlers.gate" in drawing


def test_trace_tells_of_both_processes(stack: Stack, worker: Worker, chained: str) -> None:
    """`trace` shows the emission, its handler and the handler's emission below it, by the id of any of them."""
    (tree,) = run_json(stack, schemas.TREES, "trace", chained)
    (first,), (child,) = tree["deliveries"], tree["children"]
    assert (tree["id"], first["state"], child["parent"]) == (chained, "done", chained)
    assert child["caused_in"] == first["handler"] == "project.handlers.first"
    assert tree["process"] != child["process"]
    for identity in (child["id"], first["id"], child["deliveries"][0]["id"]):
        assert run_json(stack, schemas.TREES, "trace", identity) == [tree]
    text = stack.project.celery("nitro", "trace", chained)
    assert text.index("project.handlers.first  done") < text.index("└─ chained.further by str") < text.index("second")


def test_tail_shows_each_step(stack: Stack, worker: Worker, chained: str) -> None:
    """`tail` shows the states of an emission and of its delivery in their order."""
    lines = stack.project.celery(
        "nitro", "tail", "--once", "--since", "1h", "--event", "chained", "--json"
    ).splitlines()
    changes = [parse(line, schemas.LINE) for line in lines]
    states = [(line["state"], line["handler"]) for line in changes if line["emission"] == chained]
    first = "project.handlers.first"
    assert states == [("emitted", None), ("queued", first), ("running", first), ("done", first)]


def test_outbox_lists_and_shows(stack: Stack, worker: Worker, chained: str) -> None:
    """`outbox list` finds a delivery by its state, and `outbox show` by its emission."""
    listed = run_json(stack, schemas.ENTRIES, "outbox", "list", "--state", "done", "--limit", "1000")
    (entry,) = [each for each in listed if each["emission"] == chained]
    (detailed,) = run_json(stack, schemas.SHOWN, "outbox", "show", chained)
    payload = detailed.pop("payload")
    assert detailed == entry
    assert payload["sender"] == "ada"


def test_a_retried_delivery_keeps_its_history(stack: Stack, worker: Worker, key: str) -> None:
    """`outbox show` has each failed run of a retried delivery with its reason, and `trace` a summary."""
    task_id = stack.emit("flaky", key)["offloaded"]["flaky"]
    until(lambda: stack.rows("SELECT 1 FROM nitro_delivery WHERE id = :id AND state = 'done'", id=task_id))
    (entry,) = run_json(stack, schemas.SHOWN, "outbox", "show", task_id)
    assert [(run["run"], run["why"]) for run in entry["history"]] == [
        (1, "ConnectionError: try again"),
        (2, "ConnectionError: try again"),
    ]
    assert "retried (runs 1 to 2) (ConnectionError: try again)" in stack.project.celery("nitro", "trace", task_id)


def test_relay_moves_what_is_due(stack: Stack) -> None:
    """`relay --once` prints a number, even if a worker published the messages before."""
    assert stack.project.celery("nitro", "relay", "--once").startswith("moved to the broker: ")


def test_doctor_finds_nothing_wrong(stack: Stack, worker: Worker) -> None:
    """`doctor` finds database, tables, broker and handlers in order."""
    findings = run_json(stack, schemas.FINDINGS, "doctor")
    verdicts = {finding["check"]: finding["verdict"] for finding in findings}
    assert verdicts.items() >= {"database": "fine", "tables": "fine", "broker": "fine", "handlers": "fine"}.items()
    assert "wrong" not in verdicts.values()


def test_a_worker_says_which_handlers_it_knows(stack: Stack, worker: Worker) -> None:
    """`celery inspect nitro_handlers` returns the handlers that the worker knows."""
    answers = json.loads(stack.project.celery("inspect", "nitro_handlers", "--json", "-d", worker.name))
    rows = parse(json.dumps(answers[worker.name]), schemas.HANDLERS)
    assert {"project.handlers.gate", "project.handlers.parked"} <= {row["handler"] for row in rows}


def test_a_worker_says_how_its_outbox_is(stack: Stack, worker: Worker, chained: str) -> None:
    """`celery inspect nitro_outbox` returns the state of the outbox."""
    text = stack.project.celery("inspect", "nitro_outbox", "--json", "-d", worker.name)
    assert list(parse(text, schemas.OUTBOX)) == [worker.name]
