"""`nitro graph`: every name is in the picture, unchanged or escaped, and inside its borders."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from weakref import WeakSet
from xml.etree.ElementTree import Element, fromstring

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from nitro import cli
from nitro.infrastructure.events import Event, Namespace, on
from nitro.infrastructure.events import events as module

ADVANCE = 10 * 0.602
"""Points that a character of a monospaced font of 10 points is wide."""
SVG = "{http://www.w3.org/2000/svg}"
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
NAMES = {
    "quotes": "say \"hi\" 'there' `x`",
    "brackets": "(a) {b} <c> ((d)) {{e}} a|b|c",
    "locals": "test.<locals>.<lambda>",
    "math": "$x^2$ and $$y$$",
    "signs": "#35; & &lt; &amp; %% ; ; end",
    "arrows": "a --> b -.-> c -- d",
    "keywords": "end",
    "graphviz": "strict digraph { \\N \\G \\l } -> /* // */",
    "backslash": "ends in \\",
    "icon": "fa:fa-car",
    "dunder": "shop.__main__._go",
    "languages": "größe 数量 😀",
    "spaces": "a  b",
    "one": "x",
}


@pytest.fixture
def events(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Events of this test, the only ones that have handlers."""
    monkeypatch.setattr(module, "_ever_connected", WeakSet())
    return Namespace()


def connected(event: Event, *names: str, **options: object) -> None:
    """Connects a handler of each name."""
    for name in names:
        on(event, name=name, **options)(lambda sender=None, **kwargs: None)  # type: ignore[call-overload]  # any


def graph(form: str, *arguments: object) -> Result:
    """Runs `nitro graph`; an unexpected error is raised."""
    arguments = ("graph", "--format", form, *arguments)
    return CliRunner().invoke(cli.nitro, [*map(str, arguments)], catch_exceptions=False)


def drawn(form: str) -> str:
    """Returns the picture."""
    done = graph(form)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def mermaid_labels(text: str) -> Iterator[str]:
    """Yields the labels of the nodes as Mermaid shows them: `#…;` is a character."""
    for label in re.findall(r'^  [eh]\d+\(?\["([^"\n]*)"\]\)?$', text, re.MULTILINE):
        yield re.sub(r"#(\d+);", lambda found: chr(int(found[1])), label)


def dot_labels(text: str) -> Iterator[str]:
    """Yields the labels of the nodes as Graphviz reads them: only `\"` and `\\` are escapes here."""
    for label in re.findall(r'^  [eh]\d+ \[label="((?:[^"\\\n]|\\.)*)" shape=\w+\];$', text, re.MULTILINE):
        yield re.sub(r"\\(.)", r"\1", label)


def svg_labels(text: str) -> Iterator[str]:
    """Yields all texts of the picture."""
    for each in fromstring(text).iter(f"{SVG}text"):
        yield "".join(each.itertext())


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_each_name_is_shown_as_it_is(events: Namespace, name: str) -> None:
    """Names of the event and its inline and offloaded handlers are shown unchanged in each format."""
    wanted = [f"{name} heard", name, f"{name} queued"]
    event = events.event(wanted[0])
    connected(event, wanted[1])
    connected(event, wanted[2], offload=True)
    assert list(mermaid_labels(drawn("mermaid"))) == wanted
    assert list(dot_labels(drawn("dot"))) == wanted
    assert set(wanted) <= set(svg_labels(drawn("svg")))


def test_mermaid_makes_no_icon_of_a_name(events: Namespace) -> None:
    """Mermaid replaces `fa:fa-car` by an icon anywhere in a label, so the colon is escaped."""
    connected(events.event("placed"), "fa:fa-car")
    assert "fa:" not in drawn("mermaid")


@pytest.mark.parametrize("form", ["mermaid", "dot", "svg"])
def test_control_characters_are_spelled_out(events: Namespace, form: str) -> None:
    """Control characters could steer a terminal, break a line, or make the XML invalid."""
    connected(events.event("two\nlines\x1b[31m"), "c1\x9b31m\x7f")
    text = drawn(form)
    assert not STEERING.search(text)
    labels = list({"mermaid": mermaid_labels, "dot": dot_labels, "svg": svg_labels}[form](text))
    assert {r"two\nlines\x1b[31m", r"c1\x9b31m\x7f"} <= set(labels)


@pytest.mark.parametrize("form", ["mermaid", "dot", "svg"])
def test_an_event_and_a_handler_may_have_one_name(events: Namespace, form: str) -> None:
    """An event and a handler with the same name are two nodes."""
    connected(events.event("placed"), "placed")
    labels = {"mermaid": mermaid_labels, "dot": dot_labels, "svg": svg_labels}[form](drawn(form))
    assert [label for label in labels if label == "placed"] == ["placed"] * 2


def test_a_handler_of_two_events_is_one_node(events: Namespace) -> None:
    """The node has an arrow from each event and from a glob."""

    def audit(sender: object) -> None: ...

    for name in ("order.placed", "order.paid", "order.*"):
        on(events.event(name), name="shop.audit")(audit)
    text = drawn("mermaid")
    assert list(mermaid_labels(text)) == ["order.*", "order.paid", "order.placed", "shop.audit"]
    assert re.findall(r"(e\d) --> (h\d)", text) == [("e0", "h3"), ("e1", "h3"), ("e2", "h3")]


@pytest.mark.parametrize("form", ["mermaid", "dot", "svg"])
def test_nothing_can_be_drawn_too(events: Namespace, form: str) -> None:
    """A project without handlers gets an empty picture and a warning."""
    done = graph(form)
    assert (done.exit_code, done.stderr.startswith("warning: no handler is declared")) == (0, True)
    assert done.stdout.startswith({"mermaid": "flowchart LR\n", "dot": "digraph nitro {\n", "svg": "<?xml"}[form])


def test_the_same_handlers_give_the_same_picture(events: Namespace) -> None:
    """Repeated commands print the same text, so a picture can be kept in a repository."""
    connected(events.event("placed"), "shop.a", "shop.b")
    for form in ("mermaid", "dot", "svg"):
        assert drawn(form) == drawn(form)


def box(picture: Element) -> tuple[float, float]:
    """Returns width and height of a picture."""
    left, top, width, height = map(float, picture.attrib["viewBox"].split())
    assert (left, top) == (0, 0)
    return width, height


def places(picture: Element) -> Iterator[tuple[str, float, float, float]]:
    """Yields each name with its begin, its end and its line."""
    for each in picture.iter(f"{SVG}text"):
        text, style = "".join(each.itertext()), each.attrib["style"]
        if "10px" in style:  # and no label of an arrow
            x, y, length = float(each.attrib["x"]), float(each.attrib["y"]), ADVANCE * len(text)
            begin = x - length if "text-anchor: end" in style else x
            yield text, begin, begin + length, y


@pytest.mark.parametrize("further", [0, 1, 12])
def test_all_of_an_svg_is_within_it(events: Namespace, further: int) -> None:
    """Long names and events far below their handlers stay inside the picture."""
    connected(events.event("a.long.name." * 6), *(f"shop.{number}.{'x' * 60}" for number in range(9)))

    def shared(sender: object) -> None: ...

    for number in range(further):
        on(events.event(f"b{number:02}"), name=f"shop.0.{'x' * 60}")(shared)
    picture = fromstring(drawn("svg"))
    width, height = box(picture)
    found = list(places(picture))
    assert len(found) == 1 + further + 9
    for text, begin, end, y in found:
        assert 0 < begin < end < width, text
        assert 0 < y < height, text
    rows = sorted(y for text, _, _, y in found if not text.startswith("shop"))
    assert all(below - above > 12 for above, below in pairwise(rows))


def test_a_glyph_that_a_font_lacks_is_no_warning(events: Namespace) -> None:
    """A missing glyph is no warning, because the viewer's font may have it."""
    connected(events.event("😀"), "数量")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {"😀", "数量"} <= set(svg_labels(drawn("svg")))


@pytest.mark.parametrize("form", ["mermaid", "dot", "svg"])
def test_a_file_has_what_the_terminal_would_show(events: Namespace, form: str, tmp_path: Path) -> None:
    """The file has the same picture as stdout; an unwritable file is an error with its name and the reason."""
    connected(events.event("placed"), "shop.a")
    file = tmp_path / "graph"
    assert graph(form, "-o", file).exit_code == 0
    assert file.read_text(encoding="utf-8") == drawn(form)
    failed = graph(form, "-o", tmp_path / "none" / "graph")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "No such file or directory" in failed.stderr
    assert json.dumps(str(tmp_path / "none" / "graph"))[1:-1] in failed.stderr


@pytest.mark.parametrize(("form", "code"), [("mermaid", 0), ("dot", 0), ("svg", 1)])
def test_only_svg_needs_matplotlib(
    events: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str, code: int
) -> None:
    """Without matplotlib `--format svg` is an error and writes no file."""
    connected(events.event("placed"), "shop.a")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    file = tmp_path / "graph"
    done = graph(form, "-o", file)
    assert (done.exit_code, file.exists()) == (code, not code)
    if code:
        assert done.stderr == "Error: --format svg needs matplotlib: pip install 'nitro-celery[graph]'\n"
