"""Settings from the environment: contract section 10."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nitro.errors import SettingError
from nitro.settings import Settings


def test_without_variables_no_server_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults are those of the contract."""
    monkeypatch.chdir(tmp_path)
    assert Settings.load({}) == Settings(
        db_url="sqlite:///nitro.db",
        is_db_set=False,
        broker_url="filesystem://localhost//",
        result_backend=f"db+sqlite:///{tmp_path / '.nitro' / 'results.db'}",
        handlers=(),
        journal=False,
        home=tmp_path / ".nitro",
        delivery="at-least-once",
        signing_key=None,
    )


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings without an argument come from the present environment of the process."""
    monkeypatch.setenv("NITRO_DELIVERY", "broker")
    assert Settings.load().delivery == "broker"
    monkeypatch.setenv("NITRO_DELIVERY", "at-most-once")
    assert Settings.load().delivery == "at-most-once"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("NITRO_DELIVERY", "twice", "at-most-once, broker, at-least-once, exactly-once"),
        ("NITRO_JOURNAL", "maybe", "off"),
        ("NITRO_DB_URL", "mongodb://localhost", "postgresql://"),
        ("NITRO_DB_URL", "nitro.db", "sqlite://"),
        ("NITRO_BROKER_URL", "kafka://localhost", "redis://"),
        ("NITRO_BROKER_URL", "localhost:6379", "amqp://"),
        ("NITRO_HANDLERS", "shop/handlers.py", "shop.handlers"),
        ("NITRO_HANDLERS", "shop handlers", "shop.handlers"),
    ],
)
def test_wrong_value_is_an_error_that_says_what_is_allowed(name: str, value: str, allowed: str) -> None:
    """The error names the setting, its value and the allowed values."""
    with pytest.raises(SettingError) as caught:
        Settings.load({name: value})
    message = str(caught.value)
    assert name in message
    assert repr(value) in message
    assert allowed in message


def test_password_of_a_wrong_url_is_not_shown() -> None:
    """The error leaves out the password, because errors are logged."""
    with pytest.raises(SettingError) as caught:
        Settings.load({"NITRO_BROKER_URL": "kafka://user:secret@localhost"})
    assert "secret" not in str(caught.value)


def test_empty_variable_means_the_default() -> None:
    """An empty variable, as compose files pass it, means the default."""
    names = ("DB_URL", "BROKER_URL", "RESULT_BACKEND", "HANDLERS", "JOURNAL", "HOME", "DELIVERY", "SIGNING_KEY")
    assert Settings.load({f"NITRO_{name}": "" for name in names}) == Settings.load({})


@pytest.mark.parametrize("url", ["postgresql://u@h/db", "postgres://u@h/db"])
def test_postgres_gets_the_driver_of_the_extra(url: str) -> None:
    """A PostgreSQL URL without a driver gets psycopg, the driver of the extra."""
    assert Settings.load({"NITRO_DB_URL": url}).db_url == "postgresql+psycopg://u@h/db"


def test_named_driver_stays() -> None:
    """A synchronous driver in the URL stays."""
    assert Settings.load({"NITRO_DB_URL": "postgresql+psycopg2://u@h/db"}).db_url == "postgresql+psycopg2://u@h/db"


def test_results_go_to_a_server_database() -> None:
    """Results are in the server database; with SQLite they have a separate file."""
    assert Settings.load({"NITRO_DB_URL": "postgresql://u@h/db"}).result_backend == "db+postgresql+psycopg://u@h/db"
    assert Settings.load({"NITRO_HOME": "/var/nitro"}).result_backend == "db+sqlite:////var/nitro/results.db"


def test_own_result_backend_stays() -> None:
    """`NITRO_RESULT_BACKEND` accepts any backend of Celery."""
    assert Settings.load({"NITRO_RESULT_BACKEND": "redis://h/1"}).result_backend == "redis://h/1"


def test_handlers_are_comma_separated_modules() -> None:
    """Spaces and an empty end are ignored."""
    assert Settings.load({"NITRO_HANDLERS": "shop.handlers, mail,"}).handlers == ("shop.handlers", "mail")


def test_home_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home folder stays the same after a change of the current folder."""
    monkeypatch.chdir(tmp_path)
    assert Settings.load({"NITRO_HOME": "data"}).home == tmp_path / "data"


def test_settings_are_frozen() -> None:
    """Attributes of settings cannot be set."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings.load({}).delivery = "broker"  # type: ignore[misc]  # the misuse under test
