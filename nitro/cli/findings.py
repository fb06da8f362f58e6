"""Findings: what came of the checks that `nitro doctor` makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of a check; `wrong` keeps deliveries from being made, a `warning` need not."""

    verdict: Literal["fine", "warning", "wrong"]
    check: str
    found: str


def fine(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(verdict="fine", check=check, found=found)


def warning(check: str, found: str) -> Finding:
    """Something that somebody may have meant."""
    return Finding(verdict="warning", check=check, found=found)


def wrong(check: str, found: str) -> Finding:
    """Something that keeps deliveries from being made."""
    return Finding(verdict="wrong", check=check, found=" ".join(found.split()))
