"""A user's Alembic leaves Nitro's tables alone: contract section 14."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from nitro.alembic import include_name
from nitro.infrastructure.database import create_tables, nitro_metadata, reset

ROOT = Path(__file__).parents[2]
ENV = """
from alembic import context
from sqlalchemy import create_engine
import shop
with create_engine({url!r}).connect() as connection:
    context.configure(connection=connection, target_metadata=shop.metadata{options})
    with context.begin_transaction():
        context.run_migrations()
"""
MODELS = """
from sqlmodel import Field, SQLModel
metadata = SQLModel.metadata
class Order(SQLModel, table=True):
    __tablename__ = "shop_order"
    id: int = Field(primary_key=True)
"""
HANDLERS = """
from nitro import on
@on("order.placed", offload=True)
def mail(sender): ...
"""
TEMPLATE = '''"""${message}"""
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
from alembic import op
import sqlalchemy as sa
import sqlmodel
def upgrade():
    ${upgrades if upgrades else "pass"}
def downgrade():
    ${downgrades if downgrades else "pass"}
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with migrations, a table that its models no longer have, and Nitro's tables."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    monkeypatch.setenv("NITRO_DB_URL", url)
    reset()
    create_tables(entities=False)
    with create_engine(url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE of_old (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("CREATE INDEX ix_of_old ON of_old (id)")
    metadata = tmp_path / "nitro_celery-0.1.0.dist-info"  # the files that `pip install` makes from pyproject.toml
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nitro-celery\nVersion: 0.1.0\n")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [
        line
        for group, members in points.items()
        for line in (f"[{group}]", *(f"{n} = {o}" for n, o in members.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {tmp_path}/migrations\n")
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "script.py.mako").write_text(TEMPLATE)
    return tmp_path


def migration(project: Path, models: str, options: str = "") -> str:
    """Runs `alembic revision --autogenerate` and returns the migration that it writes."""
    (project / "shop.py").write_text(models)
    url = f"sqlite:///{project / 'shop.db'}"
    (project / "migrations" / "env.py").write_text(ENV.format(url=url, options=options))
    environ = {"PYTHONPATH": f"{project}:{':'.join(sys.path)}", "PATH": ""}
    command = [sys.executable, "-m", "alembic", "revision", "--autogenerate", "-m", "next"]
    process = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    (migration_file,) = (project / "migrations" / "versions").glob("*.py")
    return migration_file.read_text()


@pytest.mark.parametrize("models", [MODELS, MODELS + HANDLERS], ids=["without handlers", "with handlers"])
def test_autogenerate_neither_makes_nor_drops_them(project: Path, models: str) -> None:
    """A migration neither creates nor drops Nitro's tables, in processes with and without handlers."""
    source = migration(project, models)
    assert "nitro_" not in source
    assert "create_table('shop_order'" in source
    assert "drop_table('of_old'" in source
    assert "create_table('of_old'" in source


def test_autogenerate_with_plugins_of_its_own_is_told_by_a_name_filter(project: Path) -> None:
    """With its own list of plug-ins, as before Alembic 1.18, env.py needs the filter `include_name`."""
    plugins = ", autogenerate_plugins=['alembic.autogenerate.tables', 'alembic.autogenerate.schemas']"
    options = f"{plugins}, include_name=__import__('nitro.alembic').alembic.include_name"
    source = migration(project, MODELS, options)
    assert "nitro_" not in source
    assert "drop_table('of_old')" in source


def test_the_filter_is_about_nitros_tables_alone() -> None:
    """The filter excludes Nitro's tables only; a user's table with a similar name is included."""
    assert not any(include_name(name, "table", {}) for name in nitro_metadata.tables)
    assert include_name("nitro_glycerine", "table", {})
    assert include_name("nitro_worker", "column", {})
