"""A real worker on every stack registers, runs and shows handlers: contract, sections 4 to 6."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from stacks import Stack
from worker import ROOT, Worker, until


def test_every_handler_is_registered_under_its_own_name(stack: Stack, worker: Worker) -> None:
    """`celery -A tasks inspect registered` lists handlers as tasks."""
    answer = json.loads(stack.project.celery("inspect", "registered", "--json", "-t", "10", "-d", worker.name))
    registered = set(answer[worker.name])
    assert {"project.handlers.plain", "project.handlers.coroutine", "project.script.handle"} <= registered
    assert "project.handlers.gate" not in registered


def test_the_worker_answers_a_ping(stack: Stack, worker: Worker) -> None:
    """A control command of the app is answered."""
    answer = json.loads(stack.project.celery("inspect", "ping", "--json", "-t", "10", "-d", worker.name))
    assert answer == {worker.name: {"ok": "pong"}}


def test_all_four_kinds_of_handlers_run_in_another_process(stack: Stack, worker: Worker, key: str) -> None:
    """All four kinds of handlers run in another process than the emitter."""
    emitted = stack.emit("kinds", key)
    effects = stack.effect(key, 4)
    assert {effect["handler"].rpartition(".")[2] for effect in effects} == set(emitted["offloaded"])
    assert emitted["pid"] not in {effect["pid"] for effect in effects}
    assert {effect["emission"] for effect in effects} == {emitted["id"]}


def test_a_handler_writes_a_row(stack: Stack, worker: Worker, key: str) -> None:
    """The worker writes to the emitter's database."""
    emitted = stack.emit("recorded", key)
    [(pid,)] = until(lambda: stack.rows("SELECT pid FROM receipt WHERE id = :key", key=key))
    assert pid != emitted["pid"]


def test_the_return_value_is_the_result(stack: Stack, worker: Worker, key: str) -> None:
    """A handler's return value, or the list of its yielded values, is in the result backend."""
    offloaded = stack.emit("kinds", key)["offloaded"]
    assert {stack.ended(task_id) for task_id in offloaded.values()} == {"SUCCESS"}
    assert stack.result(offloaded["plain"]).result == "thanks, ada"
    assert stack.result(offloaded["async_generator"]).result == [1]


def test_every_type_arrives_as_it_was(stack: Stack, worker: Worker, key: str) -> None:
    """Sender, args and kwargs arrive equal in type and value, entities with their loaded items included."""
    stack.emit("everything", key)
    [effect] = stack.effect(key)
    assert effect["differing"] == []
    assert effect["sender"]
    assert effect["args"]


def test_items_that_were_not_loaded_load_in_the_worker(stack: Stack, worker: Worker, key: str) -> None:
    """`sender.items` works in an offloaded handler whether it was loaded before or not."""
    stack.emit("lazy", key)
    [effect] = stack.effect(key)
    assert sorted(effect["products"]) == ["milk", "tea"]


def test_an_emit_in_a_handler_knows_its_root(stack: Stack, worker: Worker, key: str) -> None:
    """The handler of an emit inside a handler has the first emission as its root."""
    emitted = stack.emit("chained", key)
    effects = {effect["handler"].rpartition(".")[2]: effect for effect in stack.effect(key, 2)}
    assert effects["first"]["emission"] == emitted["id"]
    assert effects["second"]["root"] == emitted["id"]


def test_handlers_of_a_thread_pool_share_one_loop_and_run_at_once(stack: Stack, threads: Worker, key: str) -> None:
    """Eight coroutines of a thread pool meet at a barrier for eight."""
    stack.emit("meeting", key, times=8)
    effects = stack.effect(key, 8)
    assert len({effect["loop"] for effect in effects}) == 1
    assert {effect["pid"] for effect in effects} == {threads.pid}


def test_progress_is_in_the_result_backend(stack: Stack, worker: Worker, key: str) -> None:
    """A yielded value is in the result backend while the generator runs."""
    result = stack.result(stack.emit("stepwise", key)["offloaded"]["stepwise"])
    until(lambda: result.state == "PROGRESS")
    assert result.info == {"step": 1, "value": "packed"}
    Path(stack.project.environ["ACCEPTANCE_EFFECTS"], f"{key}.go").touch()
    assert stack.ended(result.id) == "SUCCESS"
    assert result.result == ["packed", "sent"]


def test_events_show_a_task_from_sent_to_succeeded(stack: Stack, worker: Worker, key: str) -> None:
    """Celery's events show a task and its progress under the handler's name, with readable arguments."""
    events = [json.loads(line) for line in stack.project.python("-m", "project.watcher", key).splitlines()]
    seen = {event["type"]: event for event in events}
    assert {"task-sent", "task-received", "task-started", "task-progress", "task-succeeded"} <= set(seen)
    assert seen["task-progress"]["result"] == "step 1: 1"
    for kind in ("task-sent", "task-received"):
        assert seen[kind]["name"] == "project.handlers.generator"
        assert "'event': 'kinds'" in seen[kind]["kwargs"]
        assert key not in seen[kind]["kwargs"]


def test_signals_of_a_successful_task(stack: Stack, worker: Worker, key: str) -> None:
    """Celery's signals of a successful task are sent in the worker, with the handler's task as sender."""
    task_id = stack.emit("kinds", key)["offloaded"]["coroutine"]
    signals = stack.effect(f"{task_id}.signals", 3)
    assert {effect["signal"] for effect in signals} == {"task_prerun", "task_success", "task_postrun"}
    assert {effect["task"] for effect in signals} == {"project.handlers.coroutine"}


def test_signals_of_a_failed_task(stack: Stack, worker: Worker, key: str) -> None:
    """Celery's signals of a raising handler are those of a failed task."""
    task_id = stack.emit("hopeless", key)["offloaded"]["hopeless"]
    signals = stack.effect(f"{task_id}.signals", 3)
    assert {effect["signal"] for effect in signals} == {"task_prerun", "task_failure", "task_postrun"}
    assert stack.ended(task_id) == "FAILURE"
    assert isinstance(stack.result(task_id).result, ConnectionError)


def test_signals_of_a_retried_task(stack: Stack, worker: Worker, key: str) -> None:
    """Each retry sends `task_retry`, and the last run `task_success`."""
    task_id = stack.emit("flaky", key)["offloaded"]["flaky"]
    assert stack.ended(task_id) == "SUCCESS"
    signals = Counter(effect["signal"] for effect in stack.effect(f"{task_id}.signals", 9))
    assert signals == {"task_prerun": 3, "task_retry": 2, "task_success": 1, "task_postrun": 3}


@pytest.mark.parametrize(
    ("arguments", "handlers"),
    [
        (["-m", "project.script"], "project.handlers"),
        ([ROOT / "tests/acceptance/project/script.py"], "project.script"),
        ([ROOT / "tests/acceptance/project/script.py"], "project.handlers"),
    ],
    ids=["module", "listed path", "package path"],
)
def test_a_program_reaches_the_workers_same_task(
    stack: Stack, worker: Worker, key: str, arguments: list[object], handlers: str
) -> None:
    """A module that is run as a program queues its handler under the name that the worker knows."""
    stack.project.python(*arguments, key, NITRO_HANDLERS=handlers)
    [effect] = stack.effect(key)
    assert effect["handler"] == "project.script.handle"
    assert (effect["weight"], effect["kind"]) == (3, "project.script.Parcel")
