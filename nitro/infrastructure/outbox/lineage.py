"""Lineage: an emission with what became of it, and the emissions that its handlers made, as far as they are kept."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select

from nitro.infrastructure.database import engine
from nitro.infrastructure.offload.story import Story, Turn
from nitro.infrastructure.outbox.registry import Entry, entries
from nitro.infrastructure.outbox.tables import deliveries, emissions, first_id, made_at
from nitro.infrastructure.outbox.texts import storable
from nitro.infrastructure.outbox.versions import ensure_current

_c = emissions.c
FACTS = (_c.id, _c.event, _c.sender, _c.root, _c.parent, _c.story)
DEEPEST = 100
"""Levels of a tree. What is deeper is a tree of its own: neither people nor what reads JSON follow one for ever."""


@dataclass(slots=True, kw_only=True)
class Told:
    """An emission.

    Attributes:
        at: when it began by the emitter's clock; without a story, when its id was made.
        took: seconds until its inline handlers had ended; None without a story.
        process: host and process id of the emitter; None without a story.
        caused_in: the handler that emitted it.
        rolled_back: whether the transaction that it was in was not committed; the journal tells.
        turns: its inline handlers, those that were skipped, and those that were queued without a row, in order.
        deliveries: the others, by handler.
        children: what its handlers emitted, the earliest first.
    """

    id: str
    event: str | None
    sender: str
    root: str | None
    parent: str | None
    at: datetime
    took: float | None
    process: str | None
    caused_in: str | None
    error: str | None
    rolled_back: bool
    turns: list[Turn]
    deliveries: list[Entry]
    children: list[Told] = field(default_factory=list)


def of(identity: str) -> list[Told]:
    """The tree that an emission, or that of a delivery, is in, from its root; several when the root is not kept.

    So many as well where it has more levels than `DEEPEST`.

    Args:
        identity: id of an emission, or of a delivery, which is its Celery task id.
    """
    ensure_current()
    identity = storable(identity)
    by_delivery = select(deliveries.c.emission).where(deliveries.c.id == identity)
    asked = select(_c.id, _c.root).where(or_(_c.id == identity, _c.id.in_(by_delivery)))
    with engine().connect() as connection:
        found = connection.execute(asked).all()
    return _shallow(_trees(_families(row.root or row.id for row in found)))


def by_sender(sender: str) -> ColumnElement[bool]:
    """Emissions by a sender, such as `Order:o1`, whatever `__nitro_show__` of its class adds."""
    return or_(_c.sender == sender, func.substr(_c.sender, 1, len(sender) + 1) == f"{sender} ")


def about(sender: str, since: datetime, most: int) -> tuple[list[Told], bool]:
    """The latest emissions by a sender, each with what its handlers emitted, and whether there are more.

    The earliest comes first.
    """
    ensure_current()
    shown = by_sender(storable(sender))
    asked = select(_c.id, _c.root).where(_c.id >= first_id(since), shown).order_by(_c.id.desc())
    with engine().connect() as connection:
        all_found = connection.execute(asked.limit(most + 1)).all()
    found = all_found[:most]
    mine, told = {row.id for row in found}, _families(row.root or row.id for row in found)
    _trees(told)
    tops = mine - _below(each for each in told if each.id in mine)
    return _shallow([each for each in told if each.id in tops]), len(all_found) > most


def is_cut(told: Sequence[Told]) -> bool:
    """Whether some of these trees go on where others of them end."""
    return not _below(told).union(each.id for each in told).isdisjoint(each.parent for each in told)


def named(identities: Collection[str]) -> list[Told]:
    """The emissions with these ids, the earliest first, each without its children."""
    return _told(_c.id.in_(identities)) if identities else []


def _families(roots: Iterable[str]) -> list[Told]:
    """The emissions of these roots, and all that they have caused."""
    wanted = sorted(set(roots))
    return _told(or_(_c.id.in_(wanted), _c.root.in_(wanted))) if wanted else []


def _told(which: ColumnElement[bool]) -> list[Told]:
    with engine().connect() as connection:
        rows = connection.execute(select(*FACTS).where(which).order_by(_c.id)).all()
    sent: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries(which):
        sent[entry.emission].append(entry)
    return [_tell(row, sent[row.id]) for row in rows]


def _tell(row: Any, sent: list[Entry]) -> Told:
    story: Story | None = json.loads(row.story) if row.story else None
    return Told(
        id=row.id,
        event=row.event,
        sender=row.sender,
        root=row.root,
        parent=row.parent,
        at=made_at(row.id) if story is None else datetime.fromtimestamp(story["at"], UTC),
        took=story and story["took"],
        process=story and story["process"],
        caused_in=story and story["caused_in"],
        error=story and story["error"],
        rolled_back=story is not None and story.get("rolled_back", False),
        turns=story["handlers"] if story is not None else [],
        deliveries=sent,
    )


def _trees(told: Sequence[Told]) -> list[Told]:
    """Put each below its parent; those whose parent is not among them."""
    by_id = {each.id: each for each in told}
    tops: list[Told] = []
    for each in told:
        parent = by_id.get(each.parent or "")
        (tops if parent is None else parent.children).append(each)
    return tops


def _below(told: Iterable[Told]) -> set[str]:
    """The ids of all that these have caused."""
    found: set[str] = set()
    coming = [child for each in told for child in each.children]
    while coming:
        each = coming.pop()
        if each.id not in found:
            found.add(each.id)
            coming += each.children
    return found


def _shallow(tops: Sequence[Told]) -> list[Told]:
    """These trees, cut at every so many levels into further ones; the earliest first."""
    trees, level, depth = list(tops), list(tops), 1
    while level:
        below = [child for each in level for child in each.children]
        if depth % DEEPEST == 0:
            trees += below
            for each in level:
                each.children = []
        level, depth = below, depth + 1
    return sorted(trees, key=lambda each: each.id)
