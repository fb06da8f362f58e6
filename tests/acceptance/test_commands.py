"""Each command as a process, beside a worker that really runs, on each stack; its JSON by a schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import schemas
from stacks import Stack
from worker import Worker, until


def asked(stack: Stack, schema: schemas.Schema, *arguments: object) -> Any:
    """What a `nitro` command gives a script, which is of that schema."""
    return checked(stack.project.celery("nitro", *arguments, "--json"), schema)


def checked(text: str, schema: schemas.Schema) -> Any:
    """The value of a JSON text that is of that schema."""
    value = json.loads(text)
    Draft202012Validator(schema).validate(value)
    return value


@pytest.fixture
def chained(stack: Stack, worker: Worker, key: str) -> str:
    """The id of an emission whose handler has emitted once more; both deliveries are done."""
    emission = str(stack.emit("chained", key)["id"])
    stack.effect(key, count=2)
    family = "SELECT state FROM nitro_delivery JOIN nitro_emission e ON e.id = emission WHERE :id IN (e.id, e.root)"
    until(lambda: [row.state for row in stack.rows(family, id=emission)] == ["done", "done"])
    return emission


def test_init_may_be_called_again(stack: Stack) -> None:
    """Tables that are there stay as they are."""
    assert stack.project.celery("nitro", "init").startswith("tables are there: ")


def test_handlers_lists_what_an_emit_would_take(stack: Stack) -> None:
    """The handlers of an event in their order: inline before queued ones."""
    rows = asked(stack, schemas.HANDLERS, "handlers", "--event", "parked")
    assert [(row["position"], row["where"], row["handler"]) for row in rows] == [
        (1, "inline", "project.handlers.gate"),
        (2, "queue", "project.handlers.parked"),
    ]
    assert rows[1]["options"] == {"queue": "parked"}


def test_explain_runs_no_handler(stack: Stack, key: str) -> None:
    """It says what an emit would do, and does nothing."""
    verdicts = asked(
        stack, schemas.VERDICTS, "explain", "parked", "--sender", "ada", "--kwargs", json.dumps({"key": key})
    )
    assert [(verdict["where"], verdict["runs"]) for verdict in verdicts] == [("inline", True), ("queue", True)]
    assert verdicts[1]["payload_size"] > len(key)
    assert stack.effects(key) == []


@pytest.mark.parametrize(("form", "begin"), [("mermaid", "flowchart LR"), ("dot", "digraph"), ("svg", "<?xml")])
def test_graph_draws_the_handlers(stack: Stack, form: str, begin: str) -> None:
    """In each format, with the names of events and handlers."""
    drawn = stack.project.celery("nitro", "graph", "--event", "parked", "--format", form)
    assert drawn.startswith(begin)
    assert "project.handlers.gate" in drawn


def test_trace_tells_of_both_processes(stack: Stack, worker: Worker, chained: str) -> None:
    """The emission, its handler in the worker, and what that emitted there, below it; by the ids of all of them."""
    (tree,) = asked(stack, schemas.TREES, "trace", chained)
    (first,), (child,) = tree["deliveries"], tree["children"]
    assert (tree["id"], first["state"], child["parent"]) == (chained, "done", chained)
    assert child["caused_in"] == first["handler"] == "project.handlers.first"
    assert tree["process"] != child["process"]
    for known in (child["id"], first["id"], child["deliveries"][0]["id"]):
        assert asked(stack, schemas.TREES, "trace", known) == [tree]
    text = stack.project.celery("nitro", "trace", chained)
    assert text.index("project.handlers.first  done") < text.index("└─ chained.further by str") < text.index("second")


def test_tail_shows_each_step(stack: Stack, worker: Worker, chained: str) -> None:
    """Of the emission, and of its delivery, in their order."""
    lines = stack.project.celery(
        "nitro", "tail", "--once", "--since", "1h", "--event", "chained", "--json"
    ).splitlines()
    told = [checked(line, schemas.LINE) for line in lines]
    mine = [(line["state"], line["handler"]) for line in told if line["emission"] == chained]
    first = "project.handlers.first"
    assert mine == [("emitted", None), ("queued", first), ("running", first), ("done", first)]


def test_outbox_lists_and_shows(stack: Stack, worker: Worker, chained: str) -> None:
    """A delivery as it stands, found by its state and by its emission."""
    listed = asked(stack, schemas.ENTRIES, "outbox", "list", "--state", "done", "--limit", "1000")
    (entry,) = [each for each in listed if each["emission"] == chained]
    (shown,) = asked(stack, schemas.SHOWN, "outbox", "show", chained)
    payload = shown.pop("payload")
    assert shown == entry
    assert payload["sender"] == "ada"


def test_a_retried_delivery_keeps_its_history(stack: Stack, worker: Worker, key: str) -> None:
    """Each run that failed, when, and why."""
    task_id = stack.emit("flaky", key)["offloaded"]["flaky"]
    until(lambda: stack.rows("SELECT 1 FROM nitro_delivery WHERE id = :id AND state = 'done'", id=task_id))
    (entry,) = asked(stack, schemas.SHOWN, "outbox", "show", task_id)
    assert [(run["run"], run["why"]) for run in entry["history"]] == [
        (1, "ConnectionError: try again"),
        (2, "ConnectionError: try again"),
    ]
    assert "retried (runs 1 to 2) (ConnectionError: try again)" in stack.project.celery("nitro", "trace", task_id)


def test_relay_moves_what_is_due(stack: Stack) -> None:
    """A number, also when a worker has been quicker."""
    assert stack.project.celery("nitro", "relay", "--once").startswith("moved to the broker: ")


def test_doctor_finds_nothing_wrong(stack: Stack, worker: Worker) -> None:
    """Broker, database, tables, and a worker that knows all handlers."""
    findings = asked(stack, schemas.FINDINGS, "doctor")
    verdicts = {finding["check"]: finding["verdict"] for finding in findings}
    assert verdicts.items() >= {"database": "fine", "tables": "fine", "broker": "fine", "handlers": "fine"}.items()
    assert "wrong" not in verdicts.values()


def test_a_worker_says_which_handlers_it_knows(stack: Stack, worker: Worker) -> None:
    """`celery inspect nitro_handlers` is answered by the worker itself."""
    answers = json.loads(stack.project.celery("inspect", "nitro_handlers", "--json", "-d", worker.name))
    rows = checked(json.dumps(answers[worker.name]), schemas.HANDLERS)
    assert {"project.handlers.gate", "project.handlers.parked"} <= {row["handler"] for row in rows}


def test_a_worker_says_how_its_outbox_is(stack: Stack, worker: Worker, chained: str) -> None:
    """`celery inspect nitro_outbox`: what waits, is queued, runs and is dead."""
    text = stack.project.celery("inspect", "nitro_outbox", "--json", "-d", worker.name)
    assert list(checked(text, schemas.OUTBOX)) == [worker.name]
