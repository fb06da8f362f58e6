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
    """A project with migrations, a table of the user's that is not in the models any more, and Nitro's tables."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    monkeypatch.setenv("NITRO_DB_URL", url)
    reset()
    create_tables(entities=False)
    with create_engine(url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE of_old (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("CREATE INDEX ix_of_old ON of_old (id)")
    metadata = tmp_path / "nitro_celery-0.1.0.dist-info"  # as `pip install` makes it of pyproject.toml
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nitro-celery\nVersion: 0.1.0\n")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [line for group, of in points.items() for line in (f"[{group}]", *(f"{n} = {o}" for n, o in of.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {tmp_path}/migrations\n")
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "script.py.mako").write_text(TEMPLATE)
    return tmp_path


def migration(project: Path, models: str, options: str = "") -> str:
    """What `alembic revision --autogenerate` writes."""
    (project / "shop.py").write_text(models)
    url = f"sqlite:///{project / 'shop.db'}"
    (project / "migrations" / "env.py").write_text(ENV.format(url=url, options=options))
    environ = {"PYTHONPATH": f"{project}:{':'.join(sys.path)}", "PATH": ""}
    command = [sys.executable, "-m", "alembic", "revision", "--autogenerate", "-m", "next"]
    done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (written,) = (project / "migrations" / "versions").glob("*.py")
    return written.read_text()


@pytest.mark.parametrize("models", [MODELS, MODELS + HANDLERS], ids=["without handlers", "with handlers"])
def test_autogenerate_neither_makes_nor_drops_them(project: Path, models: str) -> None:
    """Without a line in env.py, in processes that have handlers and in those that have none."""
    written = migration(project, models)
    assert "nitro_" not in written
    assert "create_table('shop_order'" in written
    assert "drop_table('of_old'" in written
    assert "create_table('of_old'" in written


def test_autogenerate_with_plugins_of_its_own_is_told_by_a_name_filter(project: Path) -> None:
    """As with Alembic before 1.18, which has no plug-ins."""
    plugins = ", autogenerate_plugins=['alembic.autogenerate.tables', 'alembic.autogenerate.schemas']"
    options = f"{plugins}, include_name=__import__('nitro.alembic').alembic.include_name"
    written = migration(project, MODELS, options)
    assert "nitro_" not in written
    assert "drop_table('of_old')" in written


def test_the_filter_is_about_nitros_tables_alone() -> None:
    """Whatever else has such a name is the user's."""
    assert not any(include_name(name, "table", {}) for name in nitro_metadata.tables)
    assert include_name("nitro_glycerine", "table", {})
    assert include_name("nitro_worker", "column", {})
