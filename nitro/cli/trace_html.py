"""A timeline as one HTML file without external resources: a line for each emission and handler, with bars as spans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from xml.etree.ElementTree import Element, SubElement, tostring

from nitro.cli.timeline import TimelineItem, TimeSpan
from nitro.cli.times import format_clock
from nitro.infrastructure.logs import escape_text

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
h1 { font-size: 1.2rem; }
.line { display: grid; grid-template-columns: minmax(18rem, 34%) 1fr; align-items: center; border-top: 1px solid #eee; }
.line.emission { font-weight: 600; background: #f6f7f9; }
.what { padding: .2rem .5rem; overflow-wrap: anywhere; }
.state { font-size: .8rem; padding: 0 .4rem; border-radius: .6rem; color: #fff; margin-left: .5rem; }
.note { font-size: .8rem; font-weight: 400; color: #666; display: block; }
.bars { position: relative; height: 1.2rem; margin: 0 .5rem; }
.bar { position: absolute; top: .15rem; bottom: .15rem; min-width: 3px; border-radius: 2px; background: #8a94a6; }
.axis { display: flex; justify-content: space-between; font-size: .8rem; color: #666; margin: 0 .5rem 0 34%; }
.wait { background: #dfe3ea; }
.done { background: #2e8b57; }
.dead, .failed, .raised { background: #c0392b; }
.retried, .running, .started, .waiting, .queued, .published { background: #c98a1b; }
.cancelled, .skipped, .dropped { background: #4a6fa5; }
"""
AXIS_TICKS = 5
"""Number of times on the axis."""


def render_page(items: Sequence[TimelineItem], title: str) -> str:
    """Returns the page of a timeline. Texts are escaped for HTML and for terminals."""
    html = Element("html", lang="en")
    head, body = SubElement(html, "head"), SubElement(html, "body")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "title").text = escape_text(title)
    SubElement(head, "style").text = STYLE
    SubElement(body, "h1").text = escape_text(title)
    spans = [span for item in items for span in _all_spans(item)]
    scale = _TimeAxis(spans)
    scale.draw(body)
    for item in items:
        _draw_item(body, item, 0, scale)
    scale.draw(body)
    return "<!doctype html>\n" + tostring(html, encoding="unicode", method="html")


class _TimeAxis:
    """The time axis: from the begin of the first span to the end of the last, in percent."""

    def __init__(self, spans: Sequence[TimeSpan]) -> None:
        moments = [moment for span in spans for moment in (span.began, span.ended)]
        self._begin = min(moments, default=datetime.now(UTC))
        self._length = max((max(moments, default=self._begin) - self._begin).total_seconds(), 1e-6)

    def percent(self, moment: datetime) -> float:
        """Returns the position of a moment on the axis, in percent."""
        return 100 * (moment - self._begin).total_seconds() / self._length

    def draw(self, parent: Element) -> None:
        """Draws the axis."""
        axis = SubElement(parent, "div", {"class": "axis"})
        for tick in range(AXIS_TICKS):
            moment = self._begin + timedelta(seconds=self._length * tick / (AXIS_TICKS - 1))
            SubElement(axis, "span").text = format_clock(moment)


def _draw_item(parent: Element, item: TimelineItem, depth: int, scale: _TimeAxis) -> None:
    line = SubElement(parent, "div", {"class": "line" if item.state else "line emission"})
    heading = SubElement(line, "div", {"class": "what", "style": f"padding-left: {0.5 + depth * 1.2:.1f}rem"})
    SubElement(heading, "span").text = escape_text(item.title)
    if item.state:
        SubElement(heading, "span", {"class": f"state {item.state}"}).text = item.state
    SubElement(heading, "span", {"class": "note"}).text = escape_text(item.details)
    bars = SubElement(line, "div", {"class": "bars"})
    for span in item.spans:
        left, right = scale.percent(span.began), scale.percent(span.ended)
        style = f"left: {left:.3f}%; width: {max(right - left, 0):.3f}%"
        kind = span.kind if span.kind == "wait" else span.state
        SubElement(bars, "div", {"class": f"bar {kind}", "style": style, "title": escape_text(span.label)})
    for child in item.children:
        _draw_item(parent, child, depth + 1, scale)


def _all_spans(item: TimelineItem) -> Iterator[TimeSpan]:
    yield from item.spans
    for child in item.children:
        yield from _all_spans(child)
