"""The rules for prose: docstrings begin with a subject or a verb, and small files have a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("nitro", "tasks", "tests", "benchmarks", "examples", "docs")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
OPENERS = re.compile(
    r"[`\"']*(what|those|ones?|whoever|who|whom|whose|some|others|another|s?he|they|it|this|that|these|how|where|so|of|in"
    r"|which|and|also|but|as|than|nor)\b",
    re.IGNORECASE,
)
"""Words that leave the reader of a first line without a subject."""

SMALL = {
    "nitro/alembic.py": "the module of the entry point",
    "nitro/bootstrap.py": "the composition root",
    "nitro/invocation.py": "the lowest layer, which errors import",
    "nitro/infrastructure/failpoints.py": "a layer of its own",
    "nitro/infrastructure/greenlets.py": "a layer of its own",
    "nitro/infrastructure/hooks.py": "a layer of its own",
    "nitro/infrastructure/signing.py": "a layer of its own",
    "nitro/infrastructure/events/display.py": "the telemetry and the envelope import it without the events",
    "nitro/infrastructure/events/names.py": "the outbox and the codec import it without the events",
    "nitro/infrastructure/offload/conf.py": "broker.py and celery_defaults.py both import it",
    "nitro/infrastructure/offload/delivery.py": "the module of a public class",
    "nitro/infrastructure/offload/handler_list.py": "the command line and the workers import it, the emitters do not",
    "nitro/infrastructure/worker/accepting.py": "bind imports it without the other worker steps",
    "nitro/infrastructure/worker/deferred_writes.py": "the request and the supervisor import it, and not each other",
    "nitro/infrastructure/worker/identity.py": "the attempt and the supervisor import it, and not each other",
    "nitro/infrastructure/worker/modules.py": "the command line imports it without a worker",
    "nitro/infrastructure/worker/tracebacks.py": "task.py would pass 300 lines",
}
"""Files of nitro under 60 lines that have not been merged into a neighbour, each with its reason."""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of each docstring, those below assignments included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text
        body = getattr(node, "body", None)
        for above, below in pairwise(body if isinstance(body, list) else []):
            match above, below:
                case ast.Assign() | ast.AnnAssign(), ast.Expr(ast.Constant(str(text))):
                    yield below.lineno, text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_begins_with_a_verb_or_a_noun(path: Path) -> None:
    """No docstring begins with a bare relative or pronoun."""
    assert [line for line, text in docstrings(path) if OPENERS.match(text.strip())] == []


def test_small_files_have_a_reason() -> None:
    """The modules of nitro under 60 lines are those of the list."""
    modules = [path for path in (ROOT / "nitro").rglob("*.py") if path.name != "__init__.py"]
    small = {str(path.relative_to(ROOT)) for path in modules if len(path.read_text().splitlines()) < 60}
    assert small == set(SMALL)
