"""The timeline of `nitro trace`: recorded emissions as items with spans of time, in a tree of lines and on a page."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import click
import pytest

from nitro.cli import timeline, trace_html
from nitro.cli.timeline import steps_of
from nitro.infrastructure.outbox.history import EmissionRecord
from nitro.infrastructure.outbox.operations import DeliveryRecord, PastRun

BEGIN = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOW = BEGIN + timedelta(seconds=60)


def at(seconds: float) -> datetime:
    """Returns the time this many seconds after the begin."""
    return BEGIN + timedelta(seconds=seconds)


def run(number: int, started: float, ended: float, why: str = "OSError: away") -> PastRun:
    """Returns a run that did not close its delivery."""
    return PastRun(run=number, started=at(started), ended=at(ended), why=why)


def entry(state: Any, **facts: Any) -> DeliveryRecord:
    """Returns a delivery that was published after a second."""
    fixed = {
        "id": "t1",
        "emission": "e1",
        "handler": "shop.mail",
        "event": "placed",
        "sender": "ada",
        "queue": "celery",
    }
    counts = {"attempts": 0, "retries": 0, "losses": 0, "publications": 1, "promise": "at-least-once"}
    times = {"due": None, "published": at(1), "started": None, "closed": None, "replayed": None}
    return DeliveryRecord(
        **{**fixed, **counts, **times, "worker": None, "error": None, "history": (), "state": state, **facts}
    )


def told(**facts: Any) -> EmissionRecord:
    """Returns an emission that took 10 ms."""
    fixed = {"id": "e1", "event": "placed", "sender": "ada", "root": None, "parent": None, "at": BEGIN, "took": 0.01}
    more = {"process": "host/1", "caused_in": None, "error": None, "rolled_back": False, "turns": [], "deliveries": []}
    return EmissionRecord(**{**fixed, **more, **facts})


def lines(*emissions: EmissionRecord) -> list[str]:
    """Returns the tree of lines, without times and ids of the emissions."""
    text = click.unstyle(timeline.as_text(timeline.timeline_items(emissions, NOW)))
    return [re.sub(r"  2026-01-31 .*", "", line) for line in text.splitlines()]


def spans(delivery: DeliveryRecord) -> list[tuple[str, str, float, float]]:
    """Returns kind, state, begin and end of each bar of a delivery."""
    (item,) = timeline.timeline_items([told(deliveries=[delivery])], NOW)
    (handler,) = item.children
    return [
        (span.kind, span.state, (span.began - BEGIN).total_seconds(), (span.ended - BEGIN).total_seconds())
        for span in handler.spans
    ]


def steps(delivery: DeliveryRecord) -> list[tuple[str, int]]:
    """Returns state and run of each step of a delivery."""
    return [(step.state, step.run) for step in steps_of(delivery)]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 ms"),
        (0.000012, "0.012 ms"),
        (0.0123456, "12.3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (1.0, "1 s"),
        (99.94, "99.9 s"),
        (100.0, "1m"),
        (7200.0, "2h"),
        (200_000.0, "2d"),
    ],
)
def test_a_length_of_time_has_three_digits_and_its_unit(seconds: float, shown: str) -> None:
    """A duration is shown in ms, s, m, h or d."""
    assert lines(told(turns=[{"handler": "shop.a", "outcome": "done", "at": 0.0, "took": seconds}]))[1] == (
        f"└─ inline shop.a  done  took {shown}"
    )


@pytest.mark.parametrize(("moment", "shown"), [(0.25, "+250 ms"), (-0.25, "-250 ms"), (0.0, "+0 ms")])
def test_clocks_may_differ(moment: float, shown: str) -> None:
    """A time before the emission is shown as negative, because the emitter's clock is not the database's."""
    assert lines(told(deliveries=[entry("queued", published=at(moment))]))[1] == (
        f"└─ queue  shop.mail  queued  queued {shown}"
    )


def test_a_run_that_goes_on_does_so_until_now() -> None:
    """A running run and a queued delivery have bars that end now."""
    assert spans(entry("running", attempts=1, started=at(2))) == [("wait", "queued", 1, 2), ("run", "running", 2, 60)]
    assert spans(entry("queued")) == [("wait", "queued", 1, 60)]


def test_each_run_has_one_bar() -> None:
    """The runs of the history and the closing run each have one bar."""
    done = entry("done", attempts=2, history=(run(1, 2, 3),), published=at(4), started=at(5), closed=at(6))
    assert spans(done) == [("run", "retried", 2, 3), ("wait", "queued", 4, 5), ("run", "done", 5, 6)]
    assert steps(done) == [("running", 1), ("retried", 1), ("queued", 0), ("running", 2), ("done", 0)]


@pytest.mark.parametrize("state", ["cancelled", "dead"])
def test_what_was_closed_between_two_runs_ran_once(state: str) -> None:
    """A delivery that is closed while it waits for a retry has one run."""
    closed = entry(state, attempts=1, history=(run(1, 2, 3),), started=at(2), closed=at(9))
    assert spans(closed) == [("run", "retried", 2, 3), ("wait", "queued", 1, 2)]
    assert steps(closed) == [("queued", 0), ("running", 1), ("retried", 1), (state, 0)]


def test_what_never_ran_has_waited_until_it_was_closed() -> None:
    """A delivery without a run has one waiting bar until it is closed."""
    assert spans(entry("cancelled", closed=at(9))) == [("wait", "queued", 1, 9)]
    assert steps(entry("cancelled", closed=at(9))) == [("queued", 0), ("cancelled", 0)]


def test_a_replayed_one_waits_after_its_last_run() -> None:
    """The last run is shown, although its outcome is not recorded."""
    again = entry("waiting", attempts=3, history=(run(1, 2, 3), run(2, 4, 5)), published=at(6), started=at(7))
    assert steps(again)[-3:] == [("queued", 0), ("running", 3), ("waiting", 0)]


def test_a_replayed_one_tells_how_it_had_died() -> None:
    """The earlier death is a step in its place, and its run has a bar."""
    death = PastRun(run=2, started=at(4), ended=at(5), why="OSError: no", outcome="dead")
    history = (run(1, 2, 3), death)
    again = entry("running", attempts=3, history=history, replayed=at(5.5), published=at(6), started=at(7))
    assert steps(again)[2:] == [("running", 2), ("dead", 0), ("replayed", 0), ("queued", 0), ("running", 3)]
    assert spans(again)[1] == ("run", "dead", 4, 5)
    assert "dead (OSError: no) +5 s" in lines(told(deliveries=[again]))[1]


def test_what_a_handler_of_a_worker_emitted_is_below_it() -> None:
    """Emissions of handlers are nested at any depth; without a known handler they are below the emission."""
    third = told(id="e3", event="third", parent="e2", caused_in="shop.sent")
    stray = told(id="e4", event="stray", parent="e1", caused_in="shop.gone")
    turns = [{"handler": "shop.sent", "outcome": "started", "at": 0.0}]
    second = told(id="e2", event="second", parent="e1", caused_in="shop.mail", turns=turns, children=[third])
    assert lines(told(deliveries=[entry("queued")], children=[second, stray])) == [
        "placed by ada",
        "├─ queue  shop.mail  queued  queued +1 s",
        "│  └─ second by ada",
        "│     └─ inline shop.sent  started",
        "│        └─ third by ada",
        "└─ stray by ada",
    ]


def test_several_trees_are_apart() -> None:
    """An empty line separates two trees."""
    assert lines(told(), told(event="other")) == ["placed by ada", "", "other by ada"]


def test_without_a_story_there_is_a_head_and_no_more() -> None:
    """An emission of an older version has a single line; a call of the task has no event."""
    bare = told(event=None, took=None, process=None)
    (line,) = timeline.as_text(timeline.timeline_items([bare], NOW)).splitlines()
    assert line == "a call of the task by ada  2026-01-31 12:00:00.000 UTC  e1"


class Texts(HTMLParser):
    """The tags, texts and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


NASTY = "</div></style><script>alert('\"&')</script>\x1b[31m\x9b31m\0\ud800"


def test_no_text_can_break_a_page_or_steer_a_terminal() -> None:
    """Names, senders, reasons and errors are escaped and shown."""
    turns = [{"handler": f"turn{NASTY}", "outcome": "failed", "at": 0.0, "took": 0.1, "why": f"why{NASTY}"}]
    history = (run(1, 2, 3, f"run{NASTY}"),)
    dead = entry("dead", attempts=2, history=history, started=at(5), closed=at(6), error=f"error{NASTY}")
    found = [
        told(event=f"event{NASTY}", sender=f"sender{NASTY}", error=f"raised{NASTY}", turns=turns, deliveries=[dead])
    ]
    html = trace_html.render_page(timeline.timeline_items(found, NOW), f"title{NASTY}")
    html.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", html)
    shown = Texts(html)
    assert "script" not in shown.tags
    everything = "\n".join([*shown.texts, *(value or "" for _, value in shown.attributes)])
    for what in ("event", "sender", "error", "turn", "why", "run", "title"):
        assert f"{what}</div></style><script>alert(" in everything
    assert not {name for name, _ in shown.attributes if name.startswith("on") or name in ("src", "href")}


def test_a_page_fits_its_bars_into_its_width() -> None:
    """Every bar is inside the page, even if the clocks differ."""
    early = entry("done", attempts=1, published=at(-5), started=at(-4), closed=at(-3))
    late = entry("done", handler="shop.b", attempts=1, published=at(900), started=at(2), closed=at(1))
    shown = Texts(trace_html.render_page(timeline.timeline_items([told(deliveries=[early, late])], NOW), "trace"))
    places = [value for name, value in shown.attributes if name == "style" and value and value.startswith("left")]
    assert len(places) == 5
    for place in places:
        left, width = map(float, re.findall(r"[-\d.]+(?=%)", place))
        assert 0 <= left <= 100
        assert width >= 0
        assert left + width <= 100.001


def test_a_page_of_a_single_moment_can_be_drawn() -> None:
    """A timeline without any duration is drawn."""
    assert "placed by ada" in trace_html.render_page(timeline.timeline_items([told(took=None)], NOW), "trace")
