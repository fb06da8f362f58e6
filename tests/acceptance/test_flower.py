"""Flower on the embedded stack: side effects are readable there, and the worker is."""

from __future__ import annotations

import ast
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from stacks import Stack
from worker import Worker, end, until

Api = Callable[[str], Any]


@pytest.fixture(scope="module")
def api(stack: Stack) -> Iterator[Api]:
    """Asks Flower's REST API; None while there is no answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = stack.project.start("flower", "flower", "--address=127.0.0.1", f"--port={port}")

    def ask(path: str) -> Any:
        assert process.poll() is None, stack.project.log("flower").read_text()
        try:
            with urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=10) as answer:
                return json.load(answer)
        except (URLError, ConnectionError):
            return None

    yield ask
    end(process)


pytestmark = pytest.mark.parametrize("stack", ["embedded"], indirect=True, scope="session")


def test_a_side_effect_is_readable(stack: Stack, worker: Worker, api: Api, key: str) -> None:
    """A task shows the handler's name, the event, the sender and the emission, and no field value."""
    until(lambda: worker.name in (api("workers?refresh=1") or {}))
    emitted = stack.emit("everything", key)
    task_id = emitted["offloaded"]["compare"]

    def finished() -> Any:
        shown = (api("tasks") or {}).get(task_id)
        return shown if shown and shown["state"] == "SUCCESS" else None

    shown = until(finished)
    assert shown["name"] == "project.values.compare"
    assert shown["args"] == "()"
    assert ast.literal_eval(shown["kwargs"]) == {
        "event": "everything",
        "sender": "Order:o1",
        "emission": emitted["id"],
    }


def test_the_worker_answers_through_flower(stack: Stack, worker: Worker, api: Api) -> None:
    """What Flower asks of a worker by control command is answered: its handlers and its queue."""
    shown = until(lambda: (api(f"workers?refresh=1&workername={worker.name}") or {}).get(worker.name))
    assert "project.handlers.plain" in shown["registered"]
    assert [queue["name"] for queue in shown["active_queues"]] == ["nitro"]
