"""Ledger: compares what the producer has committed with the effects that are found, and with the rows of the outbox."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Engine, text

HANDLERS: dict[str, tuple[str, ...]] = {
    "ordered": ("stock", "invoice", "greet"),
    "single": ("single",),
    "loose": ("loose",),
    "parked": ("parked",),
    "delayed": ("delayed",),
    "late": ("late",),
}
"""The handlers of each event whose effects are rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The comparison.

    Attributes:
        lost: (key, handler) that were committed and have no effect.
        double: effects beyond the first.
        ghosts: (key, handler) with an effect that were never committed.
        states: deliveries by their state.
        events: committed ones.
    """

    lost: list[tuple[str, str]]
    double: int
    ghosts: list[tuple[str, str]]
    states: dict[str, int]
    events: int


class Ledger:
    """What the database says, asked anew each time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(self, query: str, **values: object) -> list[tuple[object, ...]]:
        """What a query gives."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def number(self, query: str, **values: object) -> int:
        """The one number that a query gives."""
        ((found,),) = self.rows(query, **values)
        assert isinstance(found, int)
        return found

    def effects(self) -> int:
        """How many effects there are."""
        return self.number("SELECT count(*) FROM effect")

    def open(self) -> int:
        """Deliveries that are neither done nor given up."""
        return self.number("SELECT count(*) FROM nitro_delivery WHERE state IN ('waiting', 'queued', 'running')")

    def free(self) -> int:
        """Open deliveries that no transaction holds; SQLite holds none alone."""
        if self._engine.dialect.name == "sqlite":
            return self.open()
        free = "SELECT 1 FROM nitro_delivery WHERE closed_at IS NULL FOR UPDATE SKIP LOCKED"
        return self.number(f"SELECT count(*) FROM ({free}) AS free")

    def balance(self, aside: str = "") -> Balance:
        """Compare, now; events of one name may be left aside."""
        committed = self.rows("SELECT id, event FROM committed WHERE event <> :aside", aside=aside)
        counted = "SELECT key, handler, count(*) FROM effect WHERE handler <> :aside GROUP BY key, handler"
        found = self.rows(counted, aside=aside)
        wanted = {(str(key), handler) for key, event in committed for handler in HANDLERS.get(str(event), ())}
        effects = Counter({(str(key), str(handler)): int(str(count)) for key, handler, count in found})
        states = self.rows("SELECT state, count(*) FROM nitro_delivery GROUP BY state")
        return Balance(
            lost=sorted(wanted - set(effects)),
            double=effects.total() - len(effects),
            ghosts=sorted(set(effects) - wanted),
            states={str(state): int(str(count)) for state, count in states},
            events=len(committed),
        )
