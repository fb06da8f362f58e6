"""`nitro graph`: events and handlers as Mermaid (for a README), DOT (for Graphviz) or SVG (drawn by matplotlib)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

import click

from nitro.cli.events import select_events
from nitro.cli.project import load_handlers
from nitro.cli.render import write_output
from nitro.infrastructure.logs import escape_text

if TYPE_CHECKING:
    from nitro.infrastructure.events import Event
    from nitro.infrastructure.events.handler import Handler

CHARACTER_INCHES, LINE_INCHES, ARROW_INCHES = 0.085, 0.45, 2.0
"""Inches: the width of a character, the height of a line, the length of an arrow."""
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1}
QUEUED_COLOUR = "#c98a1b"
INLINE_COLOUR = "#2e8b57"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """An event and a handler that hears it.

    Attributes:
        queued: whether the handler runs in a worker.
        label: delivery, priority and condition of the handler, where they differ from the defaults.
    """

    event: str
    handler: str
    queued: bool
    label: str


@click.command("graph")
@click.option("--format", "form", type=click.Choice(["mermaid", "dot", "svg"]), default="mermaid", show_default=True)
@click.option("--event", metavar="NAME", help="Draw only this event.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write the graph to this file.")
def command(form: str, event: str | None, output: Path | None) -> None:
    """Draws the events with their handlers. An offloaded handler has a dashed arrow.

    SVG needs no Graphviz, but the extra `graph`: pip install 'nitro-celery[graph]'

    \b
    Example: celery -A tasks nitro graph --format svg -o events.svg
    """
    load_handlers()
    write_output(FORMATS[form]([edge for selected in select_events(event) for edge in _edges(selected)]), output)


def _edges(event: Event) -> Iterator[Edge]:
    for handler in event.handlers:
        queued = handler.offload is not None
        label = ", ".join(_label_parts(handler))
        yield Edge(event=escape_text(event.name), handler=escape_text(handler.name), queued=queued, label=label)


def _label_parts(handler: Handler) -> Iterator[str]:
    if handler.offload is not None:
        yield str(handler.offload.delivery)
    if handler.priority:
        yield f"priority {handler.priority}"
    if handler.condition is not None:
        yield "if"


def _mermaid(edges: list[Edge]) -> str:
    """Returns a flowchart (Mermaid documentation: Flowcharts, Special characters that break syntax)."""

    def quote(text: str) -> str:
        return '"' + "".join(c if c.isalnum() or c in " ._-,*?[]" else f"#{ord(c)};" for c in text) + '"'

    names, shapes = _node_names(edges), {"e": ("([", "])"), "h": ("[", "]")}
    nodes = [f"  {name}{quote(text).join(shapes[kind])}" for (kind, text), name in names.items()]
    arrows = [
        f"  {names['e', edge.event]} {'-.->' if edge.queued else '-->'}"
        f"{f'|{quote(edge.label)}|' if edge.label else ''} {names['h', edge.handler]}"
        for edge in edges
    ]
    return "\n".join(["flowchart LR", *nodes, *arrows])


def _dot(edges: list[Edge]) -> str:
    """Returns a directed graph (Graphviz documentation: DOT Language). Texts are quoted as JSON, which DOT reads."""
    names, shapes = _node_names(edges), {"e": "ellipse", "h": "box"}
    labels = {node: json.dumps(node[1], ensure_ascii=False) for node in names}
    nodes = [f"  {name} [label={labels[node]} shape={shapes[node[0]]}];" for node, name in names.items()]
    arrows = [
        f"  {names['e', edge.event]} -> {names['h', edge.handler]}"
        f" [label={json.dumps(edge.label)} style={'dashed' if edge.queued else 'solid'}];"
        for edge in edges
    ]
    return "\n".join(["digraph nitro {", "  rankdir=LR;", *nodes, *arrows, "}"])


def _svg(edges: list[Edge]) -> str:
    """Returns a picture with the events on the left and the handlers on the right.

    Raises:
        ClickException: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise click.ClickException("--format svg needs matplotlib: pip install 'nitro-celery[graph]'") from error
    handlers = {name: -LINE_INCHES * row for row, name in enumerate(dict.fromkeys(edge.handler for edge in edges))}
    events = _event_heights(edges, handlers)
    left, right = (CHARACTER_INCHES * max(map(len, column), default=0) for column in (events, handlers))
    height = LINE_INCHES - min([*handlers.values(), *events.values()], default=0.0) + LINE_INCHES
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "nitro", "font.family": "monospace", "font.size": 10}):
        figure = Figure(figsize=(left + ARROW_INCHES + right + 1, height))
        axes = figure.add_axes(
            (0, 0, 1, 1), xlim=(-left - 0.5, ARROW_INCHES + right + 0.5), ylim=(LINE_INCHES - height, LINE_INCHES)
        )
        axes.set_axis_off()
        for edge in edges:
            _draw_edge(axes, edge, events[edge.event], handlers[edge.handler])
        for places, x, side in ((events, 0.0, "right"), (handlers, ARROW_INCHES, "left")):
            for name, y in places.items():
                box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "#8a94a6"}
                axes.text(x, y, name, ha=side, va="center", bbox=box, parse_math=False)
        image = io.StringIO()
        with catch_warnings(action="ignore"):  # warnings of glyphs that the font lacks: the viewer draws the text
            figure.savefig(image, format="svg", metadata={"Date": None, "Creator": None})
    return image.getvalue().rstrip()


def _event_heights(edges: list[Edge], handlers: dict[str, float]) -> dict[str, float]:
    """Returns the height of each event: the mean of its handlers, at least a line below the event before."""
    heights: dict[str, float] = {}
    lowest = LINE_INCHES
    for event in dict.fromkeys(edge.event for edge in edges):
        handler_heights = [handlers[edge.handler] for edge in edges if edge.event == event]
        lowest = heights[event] = min(sum(handler_heights) / len(handler_heights), lowest - LINE_INCHES)
    return heights


def _draw_edge(axes: Any, edge: Edge, begin: float, end: float) -> None:
    colour = QUEUED_COLOUR if edge.queued else INLINE_COLOUR
    style = {"arrowstyle": "->", "color": colour, "linestyle": "--" if edge.queued else "-"}
    axes.annotate("", xy=(ARROW_INCHES - 0.1, end), xytext=(0.1, begin), arrowprops=style)
    x, y = ARROW_INCHES * 0.7, begin + (end - begin) * 0.7
    axes.text(x, y, edge.label, fontsize=7, color=colour, ha="center", va="center", bbox=LABEL_BOX)


def _node_names(edges: Iterable[Edge]) -> dict[tuple[str, str], str]:
    """Returns a unique name for each event and each handler, as an event and a handler may have the same name."""
    events = dict.fromkeys(("e", edge.event) for edge in edges)
    handlers = dict.fromkeys(("h", edge.handler) for edge in edges)
    return {node: f"{node[0]}{number}" for number, node in enumerate([*events, *handlers])}


FORMATS: dict[str, Callable[[list[Edge]], str]] = {"mermaid": _mermaid, "dot": _dot, "svg": _svg}
