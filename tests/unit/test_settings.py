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
    """Without an argument it is the environment of the process, as it is now."""
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
    """An error message ends up in logs."""
    with pytest.raises(SettingError) as caught:
        Settings.load({"NITRO_BROKER_URL": "kafka://user:secret@localhost"})
    assert "secret" not in str(caught.value)


def test_empty_variable_means_the_default() -> None:
    """A variable that a compose file passes on empty says nothing."""
    names = ("DB_URL", "BROKER_URL", "RESULT_BACKEND", "HANDLERS", "JOURNAL", "HOME", "DELIVERY", "SIGNING_KEY")
    assert Settings.load({f"NITRO_{name}": "" for name in names}) == Settings.load({})


@pytest.mark.parametrize("url", ["postgresql://u@h/db", "postgres://u@h/db"])
def test_postgres_gets_the_driver_of_the_extra(url: str) -> None:
    """`pip install nitro-celery[postgres]` brings psycopg, so that no driver need be named."""
    assert Settings.load({"NITRO_DB_URL": url}).db_url == "postgresql+psycopg://u@h/db"


def test_named_driver_stays() -> None:
    """A synchronous one that is named is used."""
    assert Settings.load({"NITRO_DB_URL": "postgresql+psycopg2://u@h/db"}).db_url == "postgresql+psycopg2://u@h/db"


def test_results_go_to_a_server_database() -> None:
    """With a server database results are there; with SQLite in a file of their own."""
    assert Settings.load({"NITRO_DB_URL": "postgresql://u@h/db"}).result_backend == "db+postgresql+psycopg://u@h/db"
    assert Settings.load({"NITRO_HOME": "/var/nitro"}).result_backend == "db+sqlite:////var/nitro/results.db"


def test_own_result_backend_stays() -> None:
    """`NITRO_RESULT_BACKEND` is any of Celery's."""
    assert Settings.load({"NITRO_RESULT_BACKEND": "redis://h/1"}).result_backend == "redis://h/1"


def test_handlers_are_comma_separated_modules() -> None:
    """Spaces and an empty end do no harm."""
    assert Settings.load({"NITRO_HANDLERS": "shop.handlers, mail,"}).handlers == ("shop.handlers", "mail")


def test_home_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changes its folder keeps its broker."""
    monkeypatch.chdir(tmp_path)
    assert Settings.load({"NITRO_HOME": "data"}).home == tmp_path / "data"


def test_settings_are_frozen() -> None:
    """Nothing changes them but the environment."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings.load({}).delivery = "broker"  # type: ignore[misc]  # the misuse under test
