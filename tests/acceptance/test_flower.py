"""Flower on the embedded stack: side effects are readable there, over its API and in a browser, and the worker is."""

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

from browser import loaded, picture
from stacks import Stack
from worker import Worker, end, until

Api = Callable[[str], Any]
PICTURES = os.environ.get("NITRO_PICTURES")
"""Where the pictures are kept that the documentation shows; nowhere unless set."""

pytestmark = pytest.mark.parametrize("stack", ["embedded"], indirect=True, scope="session")


def started(stack: Stack, name: str, *options: str) -> Iterator[str]:
    """Flower's address, as soon as it answers, even if only to say who may not ask."""
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
    """The HTTP status of a page."""
    try:
        with urlopen(Request(address, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def flower(stack: Stack) -> Iterator[str]:
    """The address of a running Flower."""
    yield from started(stack, "flower")


@pytest.fixture(scope="module")
def api(flower: str) -> Api:
    """Asks Flower's REST API; None where there is no such thing."""

    def ask(path: str) -> Any:
        try:
            with urlopen(f"{flower}/api/{path}", timeout=10) as answer:
                return json.load(answer)
        except HTTPError:
            return None

    return ask


@pytest.fixture
def watched(worker: Worker, api: Api) -> None:
    """Flower has heard of the worker."""
    until(lambda: worker.name in (api("workers?refresh=1") or {}))


def shown(api: Api, task_id: str, state: str = "SUCCESS") -> dict[str, Any]:
    """A task as Flower shows it, as soon as it is in that state."""

    def arrived() -> Any:
        task = (api("tasks") or {}).get(task_id)
        return task if task and task["state"] == state else None

    found: dict[str, Any] = until(arrived)
    return found


def facts(task: dict[str, Any]) -> dict[str, str]:
    """The readable arguments of a task."""
    parsed: dict[str, str] = ast.literal_eval(task["kwargs"])
    return parsed


def test_a_side_effect_is_readable(stack: Stack, watched: None, api: Api, key: str) -> None:
    """A task shows the handler's name, the event, the sender and the emission, and no field value."""
    emitted = stack.emit("everything", key)
    task = shown(api, emitted["offloaded"]["compare"])
    assert (task["name"], task["args"]) == ("project.values.compare", "()")
    assert facts(task) == {"event": "everything", "sender": "Order:o1", "emission": emitted["id"]}
    assert task["result"].startswith("done")


def test_a_result_is_a_sentence(stack: Stack, watched: None, api: Api, key: str) -> None:
    """What a handler returns is told in a line, and what a generator has yielded is not spread out."""
    emitted = stack.emit("kinds", key)["offloaded"]
    assert shown(api, emitted["plain"])["result"] == "done: thanks, ada"
    assert shown(api, emitted["coroutine"])["result"] == "done"
    assert shown(api, emitted["generator"])["result"] == "done: a list"


def test_a_retry_shows_what_the_first_run_did(stack: Stack, watched: None, api: Api, key: str) -> None:
    """The same name and the same facts, and how often."""
    emitted = stack.emit("flaky", key)
    task = shown(api, emitted["offloaded"]["flaky"])
    assert (task["name"], task["retries"]) == ("project.handlers.flaky", 2)
    assert facts(task) == {"event": "flaky", "sender": "str", "emission": emitted["id"]}


def test_progress_is_live(stack: Stack, watched: None, api: Api, key: str) -> None:
    """What a generator yields is seen while it runs."""
    task_id = stack.emit("stepwise", key)["offloaded"]["stepwise"]
    until(lambda: ((api("tasks") or {}).get(task_id) or {}).get("result") == "step 1: packed")
    Path(stack.project.environ["ACCEPTANCE_EFFECTS"], f"{key}.go").touch()
    assert shown(api, task_id)["result"] == "done: a list"


def test_a_task_names_the_one_that_caused_it(stack: Stack, watched: None, api: Api, key: str) -> None:
    """What a handler emits is linked to its task, and to the first of the chain."""
    first = stack.emit("chained", key)["offloaded"]["first"]
    second = until(lambda: [task for task in (api("tasks") or {}).values() if task["parent_id"] == first])
    assert [(task["name"], task["root_id"]) for task in second] == [("project.handlers.second", first)]


def test_the_worker_answers_through_flower(stack: Stack, worker: Worker, api: Api) -> None:
    """What Flower asks of a worker by control command is answered: its handlers and its queue."""
    told = until(lambda: (api(f"workers?refresh=1&workername={worker.name}") or {}).get(worker.name))
    assert "project.handlers.plain" in told["registered"]
    assert [queue["name"] for queue in told["active_queues"]] == ["nitro"]


def test_the_tasks_page_shows_a_side_effect_after_a_search(
    stack: Stack, watched: None, api: Api, flower: str, key: str, tmp_path: Path
) -> None:
    """In a browser: found by its event and its sender, in the columns of `flowerconfig.py`, and nothing else is."""
    emitted = stack.emit("everything", key)
    shown(api, emitted["offloaded"]["compare"])
    shown(api, stack.emit("kinds", key)["offloaded"]["plain"])
    search = quote(f"project.values.compare kwargs:event=everything kwargs:emission={emitted['id']}")
    page = loaded(f"{flower}/tasks?name={search}", tmp_path / "profile")
    (row,) = re.findall(r"<tr[^>]*>(.*?)</tr>", page.partition("<tbody>")[2].partition("</tbody>")[0], re.DOTALL)
    assert "project.values.compare" in row
    assert f"'event': 'everything', 'sender': 'Order:o1', 'emission': '{emitted['id']}'" in row
    if PICTURES:
        picture(f"{flower}/tasks", tmp_path / "profile", Path(PICTURES, "flower.png").absolute(), "1700,700")


def test_metrics_have_each_handler_and_the_outbox(stack: Stack, watched: None, api: Api, flower: str, key: str) -> None:
    """`/metrics`: a series a handler from Flower, and what it cannot see from `flowerconfig.py`."""
    shown(api, stack.emit("kinds", key)["offloaded"]["plain"])
    with urlopen(f"{flower}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    assert re.search(r'flower_events_total\{task="project\.handlers\.plain",type="task-succeeded",.*\} [1-9]', metrics)
    assert "nitro_outbox_up 1.0" in metrics
    assert re.search(r'nitro_outbox_deliveries\{state="dead"\} \d', metrics)


def test_strangers_are_kept_out(stack: Stack) -> None:
    """With `--basic-auth`, as the guide has it, pages are shown to those who know the password."""
    for address in started(stack, "guarded", "--basic-auth=ada:lovelace"):
        known = base64.b64encode(b"ada:lovelace").decode()
        assert status(f"{address}/tasks") == 401
        assert status(f"{address}/tasks", Authorization=f"Basic {known}") == 200
