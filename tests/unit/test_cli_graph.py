"""`nitro graph`: contract section 10."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from nitro import cli
from nitro.infrastructure.events import Event, Namespace, on

NASTY = ['say "hi"', "a[b](c)", "two\nlines", "<locals>", "$x^2$", "#1; end", "back\\slash", "zwölf"]


@pytest.fixture
def events(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Events of this test, the only ones that have handlers."""
    from nitro.infrastructure.events import events as module

    monkeypatch.setattr(module, "_ever_connected", module.weakref.WeakSet())
    return Namespace()


def graph(*arguments: object) -> Result:
    """Runs `nitro graph`."""
    return CliRunner().invoke(cli.nitro, ["graph", *map(str, arguments)], catch_exceptions=False)


def connected(event: Event, name: str, **options: Any) -> None:
    """Connects a handler."""
    on(event, name=name, **options)(lambda sender=None, **kwargs: None)


@pytest.fixture
def placed(events: Namespace) -> Event:
    """An event with a handler of each kind."""
    event = events.event("order-placed")
    connected(event, "shop.check", priority=5)
    connected(event, "shop.alert", condition=lambda sender: True)
    connected(event, "shop.mail", offload={"delivery": "exactly-once"})
    return event


def test_mermaid_is_the_default(placed: Event) -> None:
    """Events are round and handlers are boxes; an offloaded handler has a dashed arrow with its delivery."""
    assert graph().stdout.splitlines() == [
        "flowchart LR",
        '  e0(["order-placed"])',
        '  h1["shop.check"]',
        '  h2["shop.alert"]',
        '  h3["shop.mail"]',
        '  e0 -->|"priority 5"| h1',
        '  e0 -->|"if"| h2',
        '  e0 -.->|"exactly-once"| h3',
    ]


def test_dot_is_for_graphviz(placed: Event) -> None:
    """The DOT output is a digraph with the same nodes and arrows."""
    lines = graph("--format", "dot").stdout.splitlines()
    assert (lines[0], lines[-1]) == ("digraph nitro {", "}")
    assert '  e0 [label="order-placed" shape=ellipse];' in lines
    assert '  e0 -> h3 [label="exactly-once" style=dashed];' in lines


def test_svg_needs_no_graphviz(placed: Event) -> None:
    """The picture is XML with the names as text, so that a browser can search them."""
    texts = {
        "".join(each.itertext()).strip()
        for each in fromstring(graph("--format", "svg").stdout).iter()
        if "text" in each.tag
    }
    assert {"order-placed", "shop.check", "shop.alert", "shop.mail", "exactly-once", "priority 5"} <= texts


@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_a_picture(events: Namespace, name: str) -> None:
    """Special characters in the names of handlers and events are escaped in every format."""
    connected(events.event(name.translate({91: "("})), name)
    mermaid = graph().stdout.splitlines()
    assert len(mermaid) == 4
    assert re.fullmatch(r'  h1\["[^"]*"\]', mermaid[2])
    (label,) = re.findall(r"h1 \[label=(\".*\") shape", graph("--format", "dot").stdout)
    assert json.loads(label).replace("\\n", "\n") in (name, name.encode("unicode_escape").decode())
    assert fromstring(graph("--format", "svg").stdout).tag.endswith("svg")


def test_one_event_alone(placed: Event, events: Namespace) -> None:
    """`--event` draws one event; an event without handlers is an error that suggests the nearest."""
    connected(events.event("order-cancelled"), "shop.refund")
    assert "shop.refund" not in graph("--event", "order-placed").stdout
    unknown = graph("--event", "order-place")
    assert unknown.exit_code == 1
    assert "did you mean 'order-placed'?" in unknown.stderr


def test_it_is_written_to_a_file(placed: Event, tmp_path: Path) -> None:
    """The picture is in the file, and stdout stays empty."""
    file = tmp_path / "events.svg"
    done = graph("--format", "svg", "-o", file)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"written: {file}\n")
    assert fromstring(file.read_text()).tag.endswith("svg")


def test_without_matplotlib_the_way_out_is_named(placed: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that installs matplotlib."""
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    failed = graph("--format", "svg")
    assert failed.exit_code == 1
    assert "pip install 'nitro-celery[graph]'" in failed.stderr
