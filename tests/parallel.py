"""`pytest -n`: tests of one group run in one process, one after another, and groups run side by side."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent
STACK = re.compile(r"[\[-](embedded|redis|rabbitmq)(?=[\]-])")
ON_BROKERS = re.compile(r"^from support\.brokers import .*\b(DATABASE|PLACES|on_server)\b", re.MULTILINE)
FIRST = ("stack", "chaos", "on brokers", "tests/acceptance", "tests/contract", "tests/unit/outbox")
"""Prefixes of the groups that take longest, in the order in which they start."""
A_CORE = 2
"""Processes, as half of the tests wait for what others do."""
AT_MOST = 8
"""Processes; there are not many more groups that wait, and each process collects all tests."""


def group(nodeid: str) -> str:
    """The group of a test: its file, or those that share a stack, or the brokers of this machine."""
    path = nodeid.partition("::")[0]
    stack = STACK.search(nodeid)
    if stack is not None and path.startswith("tests/acceptance"):
        return f"{'chaos' if path.endswith('chaos.py') else 'stack'} {stack[1]}"
    return "on brokers" if empties_brokers(path) else path


@cache
def empties_brokers(path: str) -> bool:
    """Whether a file's tests begin with empty queues on the brokers of this machine."""
    return bool(ON_BROKERS.search((ROOT / path).read_text()))


def rank(item: pytest.Item) -> int:
    """The place of a test's group in the order in which groups begin."""
    name = group(item.nodeid)
    return next((place for place, prefix in enumerate(FIRST) if name.startswith(prefix)), len(FIRST))


def processes() -> int:
    """Returns the number of processes of `-n auto`."""
    return min(A_CORE * len(os.sched_getaffinity(0)), AT_MOST)


class Scheduler(LoadScopeScheduling):
    """Gives groups to processes, in the order of their first tests."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def sendable(value: Any) -> Any:
    """The same without lone surrogates, which cannot be sent from process to process."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case list() | tuple():
            return type(value)(map(sendable, value))
        case dict():
            return {key: sendable(each) for key, each in value.items()}
    return value
