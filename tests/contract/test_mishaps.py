"""Failures outside of handlers: they are logged and undo nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from nitro.errors import PayloadUnreadable
from nitro.infrastructure.events import Event, emit, on
from support.app import read_message
from support.broker import ENVELOPE_KEY


def test_publishing_that_fails_after_the_commit_is_logged(
    evt: Event, queue: Any, open_transaction: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Any error of publishing after a commit is logged, because it can be raised to no caller."""

    def fail(names: list[str]) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(queue, "_publish", fail)
    on(evt, offload=True, name="mail")(lambda sender: None)
    emit(evt)
    open_transaction.commit()
    (record,) = [record for record in caplog.records if record.name == "nitro.events"]
    assert record.levelno == logging.ERROR
    assert "disk full" in caplog.text


@pytest.mark.parametrize("envelope", [{"emission": "e1"}, {"emission": "e1", "colour": "red"}, "text", 7])
def test_a_message_of_another_version_is_unreadable(offloading: None, envelope: object) -> None:
    """An unreadable message raises an error that names the handler."""
    with pytest.raises(PayloadUnreadable, match=r"shop\.mail"):
        read_message({ENVELOPE_KEY: envelope}, "shop.mail")


def test_progress_that_cannot_be_shown_fails_no_handler(
    evt: Event, app: Celery, work: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A result backend that is away costs a progress report and fails no handler."""
    backend = type(app.backend)
    store = backend.store_result

    def away(self: Any, task_id: str, result: Any, state: str, *args: Any, **options: Any) -> Any:
        if state == "PROGRESS":
            raise ConnectionError("backend is away")
        return store(self, task_id, result, state, *args, **options)

    @on(evt, offload={"max_retries": 0}, name="shop.steps")
    def steps(sender: object) -> Any:
        yield 1
        yield 2

    monkeypatch.setattr(backend, "store_result", away)
    assert work(app).only(emit(evt)) == [1, 2]
    assert "step 2 of task" in caplog.text
