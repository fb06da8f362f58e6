"""Cooperation: whether a driver of the database lets other greenlets go on while it waits."""

from __future__ import annotations

import sys

from sqlalchemy import Engine


def missing(engine: Engine) -> str | None:
    """How the driver of this engine, which is one that would stop all greenlets, is had to let them go on."""
    waiting = sys.modules.get("psycopg.waiting") if engine.driver == "psycopg" else None
    if waiting is None or waiting.wait is not getattr(waiting, "wait_c", None):
        return None
    return "start it with PSYCOPG_WAIT_FUNC=wait_selector"
