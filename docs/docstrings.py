"""Docstrings and signatures as Markdown, for generate.py."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from nitro.infrastructure.events import ANY

WIDTH = 90
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.MULTILINE)
TITLES = {"Args": "Arguments", "Attributes": "Attributes", "Returns": "Returns", "Raises": "Raises"}
INTERNAL = frozenset(
    {
        *(
            f"Emission.{name}"
            for name in ("of", "timings", "caused_in", "plan", "started_at", "handler", "waits_for_commit")
        ),
        *(f"Event.{name}" for name in ("plan_for", "receivers", "is_muted", "send_async")),
        *(f"Namespace.{name}" for name in ("events", "signal")),
        "OutboxCollector.describe",
    }
)
"""Public in the code because other modules need them, and no part of what users may rely on."""


def sections(doc: str | None) -> dict[str, str]:
    """Returns the parts of a Google docstring by title; the text before the first title is under an empty one."""
    first, *rest = SECTION.split(inspect.cleandoc(doc or ""))
    return {
        "": first.strip(),
        **{title: textwrap.dedent(text).strip("\n") for title, text in zip(*[iter(rest)] * 2, strict=False)},
    }


def entries(text: str) -> dict[str, str]:
    """Returns the descriptions of an `Args:`, `Attributes:` or `Raises:` section by name."""
    found = re.findall(r"^(\S[^:\n]*): (.*(?:\n[ ]+.*)*)", text, re.MULTILINE)
    return {name: " ".join(described.split()) for name, described in found}


def described(doc: str | None, of: str = "") -> str:
    """Returns a docstring as Markdown; `of` is the name of its class."""
    lines = []
    for title, text in sections(doc).items():
        if not title:
            lines += [unfilled(text), ""]
        elif title == "Returns":
            lines += [f"**{TITLES[title]}** {unfilled(text)}", ""]
        else:
            listed = (
                f"- `{name}`: {meaning}" for name, meaning in entries(text).items() if f"{of}.{name}" not in INTERNAL
            )
            lines += [f"**{TITLES[title]}**", "", *listed, ""]
    return "\n".join(lines)


def unfilled(text: str) -> str:
    """Returns a text with one line for each paragraph, but for its lists and indented lines."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(each if re.search(r"^[-\s]", each, re.M) else " ".join(each.split()) for each in paragraphs)


def cell(text: str) -> str:
    """Returns a text for a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def table(headings: str, rows: Iterator[tuple[str, ...]]) -> str:
    """Returns a table; `headings` are separated by bars."""
    bars = "|".join(["---"] * len(headings.split("|")))
    return "\n".join([f"| {headings} |", f"|{bars}|", *("| " + " | ".join(map(cell, row)) + " |" for row in rows)])


class Spelled(str):
    """An annotation that is shown as the code spells it."""

    def __repr__(self) -> str:
        return str(self)


def signature(name: str, function: Callable[..., Any], *, drop: int = 0) -> str:
    """Returns a call of a function as its definition spells it, without its first `drop` parameters."""
    known = inspect.signature(function)
    given = [each.replace(annotation=_spelled(each.annotation)) for each in list(known.parameters.values())[drop:]]
    given = [each.replace(default=Spelled("ANY")) if each.default is ANY else each for each in given]
    given = [each.replace(default=Spelled("...")) if " at 0x" in repr(each.default) else each for each in given]
    text = str(known.replace(parameters=given, return_annotation=_spelled(known.return_annotation)))
    if len(text) <= WIDTH:
        return name + text
    end = text.rindex(")")
    parameters = str(inspect.Signature(given))[1:-1]
    return f"{name}(\n    " + re.sub(r", (?=[\w*/])(?![^\[(]*[\])])", ",\n    ", parameters) + f",\n{text[end:]}"


def _spelled(annotation: Any) -> Any:
    return Spelled(annotation) if isinstance(annotation, str) else annotation
