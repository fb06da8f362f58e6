"""Fixtures of the contract tests: new events, a recording dispatcher, new processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from celery import Celery

from nitro.infrastructure import scope
from nitro.infrastructure.events import Emission, Namespace, default_namespace
from nitro.infrastructure.events.handler import Handler
from nitro.infrastructure.events.observers import active_observers
from nitro.infrastructure.events.ports import Call, dispatcher_slot
from nitro.infrastructure.outbox import journal

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Options:
    """The options of every handler that is offloaded."""

    delivery: str = "broker"


@dataclass
class RecordingDispatcher:
    """A dispatcher that publishes into a list of batches instead of a broker.

    Attributes:
        steps: what happened, in order: `dispatch`, then `publish`.
        batches: for each publish, the handler names.
        error: raised by `dispatch`, when set.
    """

    steps: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    error: Exception | None = None

    def declare(self, function: Callable[..., Any], name: str, offload: object) -> Options:
        return Options()

    def dispatch(
        self, emission: Emission, call: Call, handlers: Sequence[Handler], commit: scope.Commit | None
    ) -> Callable[[], None]:
        self.steps.append("dispatch")
        if self.error is not None:
            raise self.error
        names = [handler.name for handler in handlers]
        emission.offloaded.update({name: f"{emission.id}:{name}" for name in names})
        return lambda: self._publish(names)

    def find_commit(self, call: Call, *, flush: bool) -> scope.Commit | None:
        return scope.current_transaction()

    async def flush(self, call: Call) -> None:
        self.steps.append("flush")

    def payload_sizes(self, call: Call, handlers: Sequence[Handler]) -> list[int]:
        self.steps.append("payload_sizes")
        return [100 + position for position, _ in enumerate(handlers)]

    def _publish(self, names: list[str]) -> None:
        self.steps.append("publish")
        self.batches.append(names)

    @property
    def queued(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


@dataclass
class FakeTransaction:
    """A transaction that keeps its callbacks until `commit`."""

    is_usable: bool = True
    is_open_elsewhere: bool = False
    callbacks: list[Callable[[], None]] = field(default_factory=list)

    def after_commit(self, callback: Callable[[], None], *, abandoned: Callable[[], None] | None = None) -> None:
        self.callbacks.append(callback)

    def commit(self) -> None:
        scope.transaction_variable.set(None)
        for callback in self.callbacks:
            callback()


@pytest.fixture
def default() -> Iterator[Namespace]:
    """The default namespace, empty during a test."""
    events, globs = dict(default_namespace), dict(default_namespace.globs)
    default_namespace.clear()
    default_namespace.globs.clear()
    yield default_namespace
    for registry, saved in ((default_namespace, events), (default_namespace.globs, globs)):
        registry.clear()
        registry.update(saved)


@pytest.fixture
def queue() -> Iterator[RecordingDispatcher]:
    """A recording dispatcher, installed as the dispatcher of every emit."""
    recording = RecordingDispatcher()
    with dispatcher_slot.replaced(recording):
        yield recording


@pytest.fixture
def open_transaction() -> Iterator[FakeTransaction]:
    """A transaction that is open around the test."""
    token = scope.transaction_variable.set(opened := FakeTransaction())
    yield opened
    scope.transaction_variable.reset(token)


@pytest.fixture
def fresh_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs Python source as a script in a new process and folder, and returns its output."""

    def run(source: str, *, file: str = "script.py", arguments: Sequence[str] = (), **environ: str) -> Any:
        script = tmp_path / file
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(dedent(source), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
        paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), str(tmp_path)])
        return subprocess.run(
            [sys.executable, *(arguments or [str(script)])],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8", **environ},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def celery_app() -> Iterator[Callable[..., Celery]]:
    """A function that makes Celery apps, which become current unless `set_as_current=False`."""
    apps: list[Celery] = []

    def make(*args: Any, **options: Any) -> Celery:
        apps.append(Celery(*args, **options))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def journal_on(offloading: None) -> Iterator[journal.Journal]:
    """The journal of this process, which records every emission as with NITRO_JOURNAL=on."""
    journal.observe_emissions()
    yield journal.journal
    active_observers.remove(journal.journal.watch)
    assert journal.journal.flush(20)
