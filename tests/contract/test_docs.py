"""The documentation is true: its Python runs, its links have targets, its reference equals the code's."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nitro.infrastructure.offload import Offload
from pages import DOCS, REPOSITORY, ROOT, Block, blocks, name_of, pages, written

RUNNABLE = {"python", "console", "hidden"}
PICTURES = {"", "text", "py"}
"""Languages of blocks that are no snippets: diagrams, output, signatures."""
BLOCKS = [block for page in pages() for block in blocks(page)]
ALONE = [
    pytest.param(each, id=each.id) for each in BLOCKS if each.language == "python" and not (each.file or each.skip)
]
LINKED = [*pages(), *(ROOT / name for name in ("ARCHITECTURE.md", "CHANGELOG.md")), *(ROOT / "examples").rglob("*.md")]
WORDS = (
    "Batch, Broker, Cancel, Claim, Dead letter, Delivery, Emission, Envelope, Event, Handler, Heartbeat, Lease, "
    "Offloaded handler, Outbox, Payload, Plan, Publisher thread, Queue, Relay, Replay, Snapshot and reload, "
    "Tracked and untracked"
)


def parametrized(paths: list[Path]) -> list[pytest.param]:  # type: ignore[valid-type]
    return [pytest.param(path, id=name_of(path)) for path in paths]


@pytest.mark.parametrize("block", ALONE)
def test_a_block_runs_as_written(block: Block, tmp_path: Path) -> None:
    """A reader can run each block from a file, with no server and no setting."""
    script = tmp_path / "page.py"
    script.write_text(block.text)
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    process = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr


def test_there_are_blocks() -> None:
    """The pages are found, so that the test above cannot pass without a block."""
    assert len(ALONE) >= 20


@pytest.mark.parametrize("block", [pytest.param(each, id=each.id) for each in BLOCKS])
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    """A snippet is Python or commands behind a prompt, which tests run, unless a comment above it gives a reason."""
    assert block.language in RUNNABLE | PICTURES
    if block.language == "console":
        assert block.commands
    if block.skip is not None:
        assert len(block.skip.split()) >= 3


@pytest.mark.parametrize("page", parametrized(LINKED))
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link, and one into the repository on the web, name a file that is there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, _ = link.partition("#")
        if link.startswith(REPOSITORY):
            place = re.sub(rf"^{REPOSITORY}(/(blob|tree|raw)/main)?/?", "", target)
            assert (ROOT / place).exists(), link
        elif target and "://" not in target:
            assert (page.parent / target).exists(), link


def test_the_readme_has_absolute_links() -> None:
    """A package index shows the README without the repository around it."""
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_the_package_names_its_repository() -> None:
    """The URLs of the package begin with the repository of the README's links."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Repository"] == REPOSITORY
    assert all(url.startswith(REPOSITORY) for url in urls.values())


def test_the_readme_is_short() -> None:
    """The README has at most 110 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", parametrized(written()))
def test_lines_are_short(page: Path) -> None:
    """A line has at most 160 characters, rows of tables excepted, which cannot be broken."""
    lines = [line for line in page.read_text().splitlines() if not line.startswith(("|", "<!--"))]
    assert [line for line in lines if len(line) > 160] == []


@pytest.mark.parametrize("page", parametrized([page for page in pages() if DOCS in page.parents]))
def test_commands_name_the_readers_app(page: Path) -> None:
    """`tasks` is the app of the repository, which the installed package does not have."""
    assert "-A tasks" not in page.read_text()


def test_the_reference_is_what_the_code_says() -> None:
    """The generated pages equal the output of docs/generate.py."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", DOCS / "generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, f"run `python docs/generate.py`: {process.stdout}{process.stderr}"


def test_every_option_is_described() -> None:
    """Each option of an offloaded handler has a type, a default and a meaning in the reference."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.*) \|$", (DOCS / "reference/options.md").read_text(), re.M)
    assert {name for name, *_ in rows} == set(Offload.model_fields)
    assert [name for name, _, _, meaning in rows if len(meaning.split()) < 4] == []


@pytest.mark.parametrize("page", ["cli", "settings", "events", "entity"])
def test_the_reference_leaves_nothing_empty(page: str) -> None:
    """Each parameter and each section of a generated page has a text."""
    text = (DOCS / "reference" / f"{page}.md").read_text()
    assert re.findall(r"^- `[^`]+`:\s*$", text, re.M) == []
    assert re.findall(r"^#+ .*\n+(?=#+ (?!#))", text.replace("## nitro", "nitro").replace("## Methods", ""), re.M) == []


def test_the_glossary_defines_its_words() -> None:
    """The glossary has its words in order, each with one or two sentences and the file of its code."""
    text = (DOCS / "reference/glossary.md").read_text()
    entries = re.findall(r"^## (.+)\n\n((?:.+\n)+?)\[nitro/([\w/.]+)\]\((.+)\)$", text, re.M)
    words = [word for word, *_ in entries]
    assert words == sorted(words, key=str.lower)
    assert text.count("\n## ") == len(words)
    assert not set(WORDS.split(", ")) - set(words)
    for word, meaning, file, link in entries:
        assert (ROOT / "nitro" / file).is_file(), word
        assert link == f"{REPOSITORY}/blob/main/nitro/{file}"
        assert 1 <= len(re.findall(r"[.!](?=\s|$)", meaning)) <= 2, word
