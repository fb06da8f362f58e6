"""Creates the tables of the project and of the outbox: `python -m victim.prepare`."""

from __future__ import annotations

from victim import handlers  # noqa: F401  # declares them

from nitro.infrastructure.database import create_tables
from tasks import app

if __name__ == "__main__":
    app.finalize()
    create_tables()
