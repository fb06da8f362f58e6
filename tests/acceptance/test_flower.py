"""Flower on the embedded stack shows readable side effects over its API and in a browser, and reaches the worker."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from browser import html_of, save_picture
from stacks import Stack
from worker import Worker, end, until

Api = Callable[[str], Any]
PICTURES = os.environ.get("NITRO_PICTURES")
"""The folder for the documentation's pictures; none are saved unless it is set."""

pytestmark = pytest.mark.parametrize("stack", ["embedded"], indirect=True, scope="session")


def run_flower(stack: Stack, name: str, *options: str) -> Iterator[str]:
    """Starts Flower and yields its address as soon as it answers with any HTTP status."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = stack.project.start(name, "flower", "--address=127.0.0.1", f"--port={port}", *options)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, stack.project.log(name).read_text()
        try:
            return status(f"{address}/tasks") > 0
        except (URLError, ConnectionError):
            return False

    try:
        until(answers)
        yield address
    finally:
        end(process)


def status(address: str, **headers: str) -> int:
    """Returns the HTTP status of a page."""
    try:
        with urlopen(Request(address, headers=headers), timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def flower(stack: Stack) -> Iterator[str]:
    """The address of a running Flower."""
    yield from run_flower(stack, "flower")


@pytest.fixture(scope="module")
def api(flower: str) -> Api:
    """Returns the JSON of a path of Flower's REST API, or None after an HTTP error."""

    def get(path: str) -> Any:
        try:
            with urlopen(f"{flower}/api/{path}", timeout=10) as response:
                return json.load(response)
        except HTTPError:
            return None

    return get


@pytest.fixture
def worker_known(worker: Worker, api: Api) -> None:
    """Waits until Flower has heard of the worker."""
    until(lambda: worker.name in (api("workers?refresh=1") or {}))


def task_in_state(api: Api, task_id: str, state: str = "SUCCESS") -> dict[str, Any]:
    """Waits until a task is in a state in Flower, and returns it."""

    def reached() -> Any:
        task = (api("tasks") or {}).get(task_id)
        return task if task and task["state"] == state else None

    task: dict[str, Any] = until(reached)
    return task


def facts(task: dict[str, Any]) -> dict[str, str]:
    """Returns the readable arguments of a task."""
    parsed: dict[str, str] = ast.literal_eval(task["kwargs"])
    return parsed


def test_a_side_effect_is_readable(stack: Stack, worker_known: None, api: Api, key: str) -> None:
    """A task shows handler, event, sender and emission, and no field value."""
    emitted = stack.emit("everything", key)
    task = task_in_state(api, emitted["offloaded"]["compare"])
    assert (task["name"], task["args"]) == ("project.values.compare", "()")
    assert facts(task) == {"event": "everything", "sender": "Order:o1", "emission": emitted["id"]}
    assert task["result"].startswith("done")


def test_a_result_is_a_sentence(stack: Stack, worker_known: None, api: Api, key: str) -> None:
    """A result is shown as a short sentence; the list of a generator is not shown in full."""
    emitted = stack.emit("kinds", key)["offloaded"]
    assert task_in_state(api, emitted["plain"])["result"] == "done: thanks, ada"
    assert task_in_state(api, emitted["coroutine"])["result"] == "done"
    assert task_in_state(api, emitted["generator"])["result"] == "done: a list"


def test_a_retry_shows_what_the_first_run_did(stack: Stack, worker_known: None, api: Api, key: str) -> None:
    """A retried task shows the same name and facts, and the number of retries."""
    emitted = stack.emit("flaky", key)
    task = task_in_state(api, emitted["offloaded"]["flaky"])
    assert (task["name"], task["retries"]) == ("project.handlers.flaky", 2)
    assert facts(task) == {"event": "flaky", "sender": "str", "emission": emitted["id"]}


def test_progress_is_live(stack: Stack, worker_known: None, api: Api, key: str) -> None:
    """A yielded value is shown while the generator runs."""
    task_id = stack.emit("stepwise", key)["offloaded"]["stepwise"]
    until(lambda: ((api("tasks") or {}).get(task_id) or {}).get("result") == "step 1: packed")
    Path(stack.project.environ["ACCEPTANCE_EFFECTS"], f"{key}.go").touch()
    assert task_in_state(api, task_id)["result"] == "done: a list"


def test_a_task_names_the_one_that_caused_it(stack: Stack, worker_known: None, api: Api, key: str) -> None:
    """A handler's emit is linked to the handler's task and to the first task of the chain."""
    first = stack.emit("chained", key)["offloaded"]["first"]
    second = until(lambda: [task for task in (api("tasks") or {}).values() if task["parent_id"] == first])
    assert [(task["name"], task["root_id"]) for task in second] == [("project.handlers.second", first)]


def test_the_worker_answers_through_flower(stack: Stack, worker: Worker, api: Api) -> None:
    """Flower shows the worker's handlers and queues, which it gets by control commands."""
    facts_of_worker = until(lambda: (api(f"workers?refresh=1&workername={worker.name}") or {}).get(worker.name))
    assert "project.handlers.plain" in facts_of_worker["registered"]
    assert [queue["name"] for queue in facts_of_worker["active_queues"]] == ["nitro"]


def test_the_tasks_page_shows_a_side_effect_after_a_search(
    stack: Stack, worker_known: None, api: Api, flower: str, key: str, tmp_path: Path
) -> None:
    """A search by event and emission finds one task in the browser, with the columns of `flowerconfig.py`."""
    emitted = stack.emit("everything", key)
    task_in_state(api, emitted["offloaded"]["compare"])
    task_in_state(api, stack.emit("kinds", key)["offloaded"]["plain"])
    search = quote(f"project.values.compare kwargs:event=everything kwargs:emission={emitted['id']}")
    page = html_of(f"{flower}/tasks?name={search}", tmp_path / "profile")
    (row,) = re.findall(r"<tr[^>]*>(.*?)</tr>", page.partition("<tbody>")[2].partition("</tbody>")[0], re.DOTALL)
    assert "project.values.compare" in row
    assert f"'event': 'everything', 'sender': 'Order:o1', 'emission': '{emitted['id']}'" in row
    if PICTURES:
        save_picture(f"{flower}/tasks", tmp_path / "profile", Path(PICTURES, "flower.png").absolute(), "1700,700")


def test_metrics_have_each_handler_and_the_outbox(
    stack: Stack, worker_known: None, api: Api, flower: str, key: str
) -> None:
    """`/metrics` has Flower's series for each handler, and the outbox's metrics from `flowerconfig.py`."""
    task_in_state(api, stack.emit("kinds", key)["offloaded"]["plain"])
    with urlopen(f"{flower}/metrics", timeout=10) as response:
        metrics = response.read().decode()
    assert re.search(r'flower_events_total\{task="project\.handlers\.plain",type="task-succeeded",.*\} [1-9]', metrics)
    assert "nitro_outbox_up 1.0" in metrics
    assert re.search(r'nitro_outbox_deliveries\{state="dead"\} \d', metrics)


def test_strangers_are_kept_out(stack: Stack) -> None:
    """`--basic-auth`, as in the guide, shows pages only with the password."""
    for address in run_flower(stack, "guarded", "--basic-auth=ada:lovelace"):
        credentials = base64.b64encode(b"ada:lovelace").decode()
        assert status(f"{address}/tasks") == 401
        assert status(f"{address}/tasks", Authorization=f"Basic {credentials}") == 200
