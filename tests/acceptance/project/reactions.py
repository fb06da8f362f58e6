"""Receivers of Celery's own signals, noted under the task's id."""

from __future__ import annotations

from typing import Any

from celery import signals

from project.effects import note

WATCHED = ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry")


def _noting(name: str) -> Any:
    def receive(sender: Any, **_: Any) -> None:
        note(f"{sender.request.id}.signals", signal=name, task=sender.name)

    return receive


for _name in WATCHED:
    getattr(signals, _name).connect(_noting(_name), weak=False)
