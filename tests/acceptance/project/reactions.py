"""Receivers of Celery's signals record each signal under the task's id."""

from __future__ import annotations

from typing import Any

from celery import signals

from project.effects import note

SIGNALS = ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry")


def _recorder_of(name: str) -> Any:
    def receive(sender: Any, **_: Any) -> None:
        note(f"{sender.request.id}.signals", signal=name, task=sender.name)

    return receive


for _name in SIGNALS:
    getattr(signals, _name).connect(_recorder_of(_name), weak=False)
