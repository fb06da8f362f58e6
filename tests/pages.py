"""The documentation as tests read it: pages, their fenced blocks, and the comments that describe a block."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/nitro-events/nitro"
GENERATED = "<!-- Written by docs/generate.py"

_PART = re.compile(
    r"^(?:<!-- (?P<kind>file|prints|background|skip|run|start): (?P<what>.*?) -->"
    r"|(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```)[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page, or a command in a comment, which only tests run.

    Attributes:
        id: the page and the number of the block.
        language: `python`, `console`, …; `hidden` for a command in a comment.
        file: name under which a reader saves the block.
        prints: text that its commands print in the end.
        background: text that its commands print before the next block; tests do not wait for their end.
        skip: the reason why no test runs it.
    """

    id: str
    language: str
    text: str
    file: str | None = None
    prints: str | None = None
    background: str | None = None
    skip: str | None = None

    @property
    def commands(self) -> list[str]:
        """The lines after a prompt."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]


def pages() -> list[Path]:
    """Returns all pages except those of examples, which have tests of their own."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def written() -> list[Path]:
    """Returns the pages that are not generated."""
    return [page for page in pages() if not page.read_text().startswith(GENERATED)]


def name_of(page: Path) -> str:
    """Returns the path of a page in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    """Yields the blocks of a page, each with the values of the comments directly above it."""
    comments: dict[str, str] = {}
    for number, part in enumerate(_PART.finditer(page.read_text()), 1):
        kind, what, block_id = part["kind"], part["what"], f"{name_of(page)}-{number}"
        if kind == "run":
            yield Block(id=block_id, language="hidden", text=f"$ {what}")
        elif kind == "start":
            command, _, ready = what.partition(" | ")
            yield Block(id=block_id, language="hidden", text=f"$ {command}", background=ready)
        elif kind is not None:
            comments[kind] = what
        else:
            yield Block(id=block_id, language=part["language"], text=textwrap.dedent(part["text"]), **comments)
            comments = {}
