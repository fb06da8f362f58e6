"""The ledger compares the committed events with the effects and with the rows of the outbox."""

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
    """The result of a comparison.

    Attributes:
        lost: (key, handler) of committed events without an effect.
        double: number of effects beyond the first of a handler.
        ghosts: (key, handler) of effects without a committed event.
        states: number of deliveries by state.
        events: number of committed events.
    """

    lost: list[tuple[str, str]]
    double: int
    ghosts: list[tuple[str, str]]
    states: dict[str, int]
    events: int


class Ledger:
    """Queries of the database, executed anew at each call."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(self, query: str, **values: object) -> list[tuple[object, ...]]:
        """Returns the rows of a query."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def number(self, query: str, **values: object) -> int:
        """Returns the only number of a query."""
        ((found,),) = self.rows(query, **values)
        assert isinstance(found, int)
        return found

    def effects(self) -> int:
        """Returns the number of effects."""
        return self.number("SELECT count(*) FROM effect")

    def open(self) -> int:
        """Returns the number of waiting, queued and running deliveries."""
        return self.number("SELECT count(*) FROM nitro_delivery WHERE state IN ('waiting', 'queued', 'running')")

    def free(self) -> int:
        """Returns the number of open deliveries that no transaction locks; SQLite cannot lock single rows."""
        if self._engine.dialect.name == "sqlite":
            return self.open()
        free = "SELECT 1 FROM nitro_delivery WHERE closed_at IS NULL FOR UPDATE SKIP LOCKED"
        return self.number(f"SELECT count(*) FROM ({free}) AS free")

    def balance(self, aside: str = "") -> Balance:
        """Compares events and effects now; `aside` names an event that is left out."""
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
