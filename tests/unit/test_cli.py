"""The commands of `celery … nitro`: contract section 10."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, inspect, select, text, update

from nitro import cli
from nitro.cli import outbox
from nitro.infrastructure.database import create_tables, engine, reset, transaction, write_connection
from nitro.infrastructure.events import Namespace, default_namespace, emit, on
from nitro.infrastructure.logs import exception_line
from nitro.infrastructure.offload import bind, declarations
from nitro.infrastructure.offload.publishing.connection import BrokerConnection
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox import claims, operations, relay, retention, versions
from nitro.infrastructure.outbox.operations import DeliveryRecord
from nitro.infrastructure.outbox.schema import schema_versions
from nitro.infrastructure.outbox.states import DISPLAY_STATES, is_in_states

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
EMPTY = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
TRACE = 'Traceback (most recent call last):\n  File "mail.py", line 3\nConnectionError: no mail today'
HANDLERS = """
from nitro import Entity

class Parcel(Entity, table=True):
    weight: int
"""


def nitro(*arguments: str, environ: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery", "-A", "tasks", "nitro", *arguments]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{cwd}", "NITRO_HOME": str(cwd / "home"), **environ}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a module of handlers that defines an entity."""
    (tmp_path / "parcels.py").write_text(HANDLERS)
    return tmp_path


def test_init_creates_the_tables_of_the_handlers_modules(project: Path) -> None:
    """`celery -A tasks nitro init` creates the tables before any worker has run."""
    url = f"sqlite:///{project / 'parcels.db'}"
    done = nitro("init", "--entities", environ={"NITRO_HANDLERS": "parcels", "NITRO_DB_URL": url}, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "parcel" in inspect(create_engine(url)).get_table_names()
    assert url in done.stdout


def test_init_fails_when_the_database_is_away(project: Path) -> None:
    """The error names the address on one line, and the exit code is 1."""
    url = "postgresql://postgres@127.0.0.1:9/away"
    done = nitro("init", "--entities", environ={"NITRO_HANDLERS": "parcels", "NITRO_DB_URL": url}, cwd=project)
    assert done.returncode == 1
    assert "127.0.0.1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_unknown_command_is_a_usage_error(project: Path) -> None:
    """The exit code is 2, as for any Celery command."""
    done = nitro("inti", environ={"NITRO_HANDLERS": "parcels"}, cwd=project)
    assert done.returncode == 2
    assert "inti" in done.stderr


def test_wrong_setting_is_an_error_at_start(project: Path) -> None:
    """The error names the setting, its value and the allowed values."""
    done = nitro("init", environ={"NITRO_DELIVERY": "twice"}, cwd=project)
    assert done.returncode != 0
    assert "NITRO_DELIVERY='twice'" in done.stderr
    assert "at-least-once" in done.stderr


def run(*arguments: str, answer: str | None = None) -> Result:
    """Runs a command in this process; an unexpected error is raised."""
    return CliRunner().invoke(cli.nitro, arguments, input=answer, catch_exceptions=False)


def listed(*arguments: str) -> list[dict[str, Any]]:
    """Returns the deliveries that `outbox list --json` prints."""
    found: list[dict[str, Any]] = json.loads(run("outbox", "list", "--json", *arguments).stdout)
    return found


def entry(task_id: str) -> DeliveryRecord:
    """Returns the present record of a delivery."""
    (found,) = operations.read_deliveries(operations.has_id_in([task_id]))
    return found


def close(task_id: str, error: str = "") -> str:
    """Runs a delivery as a worker does, to its end or to a final error; returns its id."""
    mine = entry(task_id)
    started = claims.claim(mine.emission, mine.handler, "boot/1")
    assert isinstance(started, claims.Claim)
    if error:
        claims.dead_letter(started, error)
    else:
        claims.finish(started)
    return task_id


@dataclass
class Shop:
    """A shop that emits to handlers; their deliveries are queued in memory."""

    events: Namespace = field(default_factory=Namespace)
    connected: set[str] = field(default_factory=set)

    def queued(self, handler: str = "shop.mail", event: str = "order.placed", **options: Any) -> str:
        """Emits to a handler, which the first call connects; returns the id of the delivery."""
        evt = self.events.event(event)
        if handler not in self.connected:
            self.connected.add(handler)
            on(evt, offload=options or True, name=handler)(lambda sender, **kwargs: None)
        task_id = emit(evt, "ada", card="4111-1111").offloaded[handler]
        assert publisher.drain(PATIENCE)
        return task_id

    def done(self, handler: str = "shop.mail") -> str:
        """Returns the id of a delivery whose handler has finished."""
        return close(self.queued(handler))

    def dead(self, handler: str = "shop.mail", error: str = TRACE) -> str:
        """Returns the id of a dead letter."""
        return close(self.queued(handler), error)

    def waiting(self, handler: str = "shop.mail") -> str:
        """Returns the id of a delivery that is due and that no relay has seen."""
        task_id = self.dead(handler)
        assert operations.replay(operations.has_id_in([task_id])) == 1
        return task_id


@pytest.fixture
def shop(app: Celery) -> Shop:
    """A shop with an empty database."""
    return Shop()


def commands(group: click.Group = cli.nitro, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yields every command with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def test_the_commands_are_light_to_import() -> None:
    """`import nitro.cli` loads neither celery nor SQL, because every `celery` command imports it."""
    heavy = "{'celery', 'kombu', 'sqlmodel', 'sqlalchemy', 'pydantic'}"
    code = f"import sys, nitro.cli; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_help_has_an_example(path: str) -> None:
    """The help has the whole command on one line, ready to be copied."""
    assert f"\n  Example: celery -A <your app> nitro {path}" in run(*path.split(), "--help").stdout


@pytest.mark.parametrize("where", ["option", "group", "environment"])
def test_colours_can_be_switched_off(shop: Shop, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--no-color` before or after the command, or any NO_COLOR, switches colours off."""
    shop.dead()
    last, first = ["--no-color"] * (where == "option"), ["--no-color"] * (where == "group")
    arguments = [*first, "outbox", "list", *last]
    assert "\x1b" in CliRunner().invoke(cli.nitro, ["outbox", "list"], color=True).stdout
    if where == "environment":
        monkeypatch.setenv("NO_COLOR", "please")
    shown = CliRunner().invoke(cli.nitro, arguments, color=True, catch_exceptions=False)
    assert "dead" in shown.stdout
    assert "\x1b" not in shown.stdout


@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_every_command_can_be_without_colours(path: str) -> None:
    """The help of each command lists `--no-color`."""
    assert "--no-color" in run(*path.split(), "--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--handler", "shop.mial"),
        ("list", "--handler", "shop.mial", "--json"),
        ("replay", "--handler", "shop.mial", "--yes"),
        ("discard", "--handler", "shop.mial", "--yes"),
    ],
)
def test_a_handler_that_is_nowhere_known_is_an_error(shop: Shop, arguments: tuple[str, ...]) -> None:
    """The error suggests the nearest handler that is declared or has a delivery."""
    shop.dead("shop.mail")
    failed = run("outbox", *arguments)
    assert (failed.exit_code, failed.stderr) == (
        1,
        "Error: no handler is named 'shop.mial'; did you mean 'shop.mail'?\n",
    )


def test_an_event_that_is_nowhere_known_is_an_error(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error suggests the nearest event; a declared event without deliveries is no error."""
    monkeypatch.setitem(default_namespace, "order.refunded", Namespace().event("order.refunded"))
    failed = run("outbox", "list", "--event", "order.refundet")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "did you mean 'order.refunded'" in failed.stderr
    assert listed("--event", "order.refunded") == []


def test_a_handler_that_is_gone_is_known_by_its_deliveries(shop: Shop) -> None:
    """A removed handler with a delivery in any state is no error."""
    shop.dead("shop.mail")
    del declarations.declarations_by_name["shop.mail"]
    assert listed("--handler", "shop.mail", "--state", "done") == []


def test_the_commands_know_every_state() -> None:
    """The choices of the options are all states of rows; they are written out to import no SQL."""
    assert sorted(outbox.OPEN_STATES + outbox.CLOSED_STATES) == sorted(DISPLAY_STATES)


@pytest.mark.parametrize("arguments", ["init", "outbox list", "relay --once"])
def test_a_database_that_is_away_is_one_line(shop: Shop, monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    """The error has the database's address and no traceback, and the exit code is 1."""
    monkeypatch.setenv("NITRO_DB_URL", "postgresql://ada:s3cret@127.0.0.1:9/away")
    reset()
    failed = run(*arguments.split())
    assert failed.exit_code == 1
    assert failed.stderr.startswith("Error: postgresql+psycopg://ada:***@127.0.0.1:9/away: ")
    assert len(failed.stderr.splitlines()) == 1


def test_an_error_that_nobody_expects_is_not_hidden(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is raised with its traceback."""
    monkeypatch.setattr(operations, "read_deliveries", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("outbox", "list")


@pytest.mark.parametrize("arguments", ["init", "outbox list", "relay"])
def test_tables_of_a_later_version_are_one_line(shop: Shop, arguments: str) -> None:
    """The error names the version of the tables, the version that this library knows, and the remedy."""
    create_tables()
    later = versions.VERSION + 1
    with write_connection() as connection:
        connection.execute(update(schema_versions).values(version=later, usable_from=later))
    reset()
    failed = run(*arguments.split())
    assert failed.exit_code == 1
    assert f"are of version {versions.VERSION + 1}, and this library knows {versions.VERSION}" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_init_brings_older_tables_up_to_date(database_each: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nitro init` runs each upgrade step from the present version on."""
    create_tables()
    monkeypatch.setattr(versions, "VERSION", versions.VERSION + 1)
    monkeypatch.setitem(versions.UPGRADE_STEPS, versions.VERSION, ("ALTER TABLE nitro_worker ADD COLUMN pid INTEGER",))
    assert run("init").exit_code == 0
    with engine().connect() as connection:
        assert connection.scalar(select(schema_versions.c.version)) == versions.VERSION
        assert "pid" in [column["name"] for column in inspect(connection).get_columns("nitro_worker")]


@pytest.mark.server
def test_init_creates_the_tables_of_the_outbox(project: Path, database_server: str) -> None:
    """On a database server `nitro init` creates the tables of the outbox."""
    server = create_engine(database_server)
    with server.begin() as connection:
        connection.execute(text(EMPTY))
    done = nitro("init", environ={"NITRO_HANDLERS": "parcels", "NITRO_DB_URL": database_server}, cwd=project)
    try:
        assert done.returncode == 0, done.stderr
        assert set(inspect(server).get_table_names()) == {
            "nitro_delivery",
            "nitro_emission",
            "nitro_schema",
            "nitro_worker",
        }
    finally:
        with server.begin() as connection:
            connection.execute(text(EMPTY))
        server.dispose()


def test_list_is_a_table(shop: Shop) -> None:
    """Each delivery is a line with its main columns and the last line of its error."""
    task_id = shop.dead()
    headings, line = run("outbox", "list").stdout.splitlines()
    assert headings.split() == ["ID", "STATE", "HANDLER", "EVENT", "SENDER", "ATTEMPTS", "WHEN", "ERROR"]
    assert line.split() == f"{task_id} dead shop.mail order.placed str 1 0s ago ConnectionError: no mail today".split()
    assert line.index("dead") == headings.index("STATE")


def test_list_shows_the_latest_emission_first(shop: Shop) -> None:
    """The latest emission is on top."""
    first, second = shop.done(), shop.queued()
    assert [row["id"] for row in listed()] == [second, first]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("--state dead", {"dead"}),
        ("--state dead --state queued", {"dead", "paid"}),
        ("--handler shop.stock", {"done"}),
        ("--event order.paid", {"paid"}),
        ("--event order.paid --state dead", set()),
    ],
)
def test_list_can_be_narrowed(shop: Shop, filters: str, expected: set[str]) -> None:
    """Filters by state, handler and event must all match."""
    made = {
        shop.dead("shop.mail"): "dead",
        shop.queued("shop.books", "order.paid"): "paid",
        close(shop.queued("shop.stock", "order.sent")): "done",
    }
    assert {made[row["id"]] for row in listed(*filters.split())} == expected


def test_list_is_limited_and_says_so(shop: Shop) -> None:
    """The latest deliveries are listed, and a line on stderr says that there are more."""
    _, second, third = shop.done(), shop.done(), shop.done()
    limited = run("outbox", "list", "--json", "--limit", "2")
    assert [row["id"] for row in json.loads(limited.stdout)] == [third, second]
    assert limited.stderr == "only the latest 2 are listed; --limit lists more\n"
    assert run("outbox", "list", "--limit", "3").stderr == ""


def test_list_says_when_a_waiting_one_is_due(shop: Shop) -> None:
    """A waiting delivery shows the time until it is due, or `due`."""
    shop.queued("shop.later", "order.sent", countdown=5400)
    shop.waiting()
    due, later = run("outbox", "list").stdout.splitlines()[1:]
    assert due.split()[6:] == ["due"]
    assert later.split()[6:] == ["in", "1h"]


def test_json_has_all_that_is_known(shop: Shop) -> None:
    """Each delivery is an object with its whole error; times have their zone."""
    task_id = shop.dead()
    (row,) = listed()
    assert row.keys() == DeliveryRecord.__dataclass_fields__.keys()
    assert row["error"] == TRACE
    closed = entry(task_id).closed
    assert closed is not None
    assert row["closed"] == closed.isoformat()


def test_json_of_nothing_is_an_empty_array(shop: Shop) -> None:
    """An empty result is an empty array, so a script needs no special case."""
    assert listed() == []


def test_an_error_cannot_steer_the_terminal(shop: Shop) -> None:
    """Control characters in a handler's error are escaped."""
    task_id = shop.dead(error="gone\x1b[2J")
    for shown in (run("outbox", "list"), run("outbox", "show", task_id)):
        assert r"gone\x1b[2J" in shown.stdout
        assert "\x1b" not in shown.stdout


def test_show_tells_all_about_a_delivery(shop: Shop) -> None:
    """The details have every field with a value, and the error with its traceback."""
    task_id = shop.dead()
    known, _, payload = run("outbox", "show", task_id).stdout.partition("payload\n")
    *facts, heading, first, second, third = known.splitlines()
    shown = dict(line.split(maxsplit=1) for line in facts)
    assert shown.keys() == {name for name, fact in asdict(entry(task_id)).items() if fact not in (None, ())} - {"error"}
    assert (shown["id"], shown["state"], shown["worker"]) == (task_id, "dead", "boot/1")
    assert heading == "error"
    assert [line[2:] for line in (first, second, third)] == TRACE.splitlines()
    assert json.loads(payload)["sender"] == "ada"


def test_show_tells_all_about_an_emission(shop: Shop) -> None:
    """The id of an emission shows all of its deliveries."""
    shop.queued("shop.mail")
    task_id = shop.queued("shop.books")
    shown = json.loads(run("outbox", "show", "--json", entry(task_id).emission).stdout)
    assert [row["handler"] for row in shown] == ["shop.books", "shop.mail"]


def test_show_of_an_unknown_id_is_an_error(shop: Shop) -> None:
    """The error names the id, and deliveries with other ids are printed."""
    task_id = shop.done()
    failed = run("outbox", "show", task_id, "o1")
    assert failed.exit_code == 1
    assert failed.stderr == "Error: no delivery or emission in the outbox has the id o1\n"
    assert task_id in failed.stdout


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show"], ["show", "--json"]])
def test_secrets_of_the_payload_are_never_shown(shop: Shop, arguments: list[str]) -> None:
    """Secrets of the payload are shown neither by `list` nor by `show`."""
    task_id = shop.dead()
    shown = run("outbox", *arguments, *([task_id] if "show" in arguments else []))
    assert task_id in shown.stdout
    assert "4111" not in shown.stdout


def test_replay_has_a_dead_letter_run_again(shop: Shop) -> None:
    """The dead letter waits again, and other dead letters stay dead."""
    task_id, other = shop.dead(), shop.dead()
    replayed = run("outbox", "replay", task_id, "--yes")
    assert (replayed.exit_code, replayed.stdout) == (0, "run again: 1 delivery\n")
    assert (entry(task_id).state, entry(task_id).error, entry(other).state) == ("waiting", None, "dead")


def test_a_dead_letter_that_is_replayed_shows_still_how_it_died(shop: Shop) -> None:
    """The earlier error is in `outbox show` and in `trace`."""
    task_id = shop.dead()
    run("outbox", "replay", task_id, "--yes")
    assert re.search(
        rf"^  run 1, dead .+: {exception_line(TRACE)}$", run("outbox", "show", task_id).stdout, re.MULTILINE
    )
    assert f"dead ({exception_line(TRACE)})" in run("trace", task_id).stdout


def test_discard_cancels_a_dead_letter(shop: Shop) -> None:
    """The dead letter is cancelled and keeps its error."""
    task_id, other = shop.dead(), shop.dead()
    discarded = run("outbox", "discard", task_id, "--yes")
    assert (discarded.exit_code, discarded.stdout) == (0, "cancelled: 1 delivery\n")
    assert (entry(task_id).state, entry(task_id).error, entry(other).state) == ("cancelled", TRACE, "dead")


BOTH = pytest.mark.parametrize(("command", "then"), [("replay", "waiting"), ("discard", "cancelled")])


@BOTH
def test_dead_letters_of_a_handler_are_meant_by_its_name(shop: Shop, command: str, then: str) -> None:
    """`--handler` selects the handler's dead letters, and no done delivery or other handler."""
    mine, mine_too, done, other = shop.dead(), shop.dead(), shop.done(), shop.dead("shop.books")
    given = run("outbox", command, "--handler", "shop.mail", "--yes")
    assert given.stdout.endswith("2 deliveries\n")
    assert [entry(each).state for each in (mine, mine_too, done, other)] == [then, then, "done", "dead"]


@BOTH
def test_an_emission_means_its_dead_letters(shop: Shop, command: str, then: str) -> None:
    """The id of an emission selects its dead deliveries."""
    shop.queued("shop.books")
    dead = shop.dead("shop.mail")
    run("outbox", command, entry(dead).emission, "--yes")
    states = {
        each.handler: each.state for each in operations.read_deliveries(operations.has_id_in([entry(dead).emission]))
    }
    assert states == {"shop.books": "queued", "shop.mail": then}


@pytest.mark.parametrize(
    ("command", "state", "then"), [("replay", "done", "waiting"), ("discard", "queued", "cancelled")]
)
def test_other_states_are_meant_when_they_are_named(shop: Shop, command: str, state: str, then: str) -> None:
    """Without `--state` only dead letters are selected."""
    task_id = shop.done() if state == "done" else shop.queued()
    refused = run("outbox", command, task_id, "--yes")
    assert (refused.exit_code, entry(task_id).state) == (1, state)
    assert refused.stderr == f"Error: no such delivery is dead; there are: 1 {state}\n"
    assert run("outbox", command, task_id, "--state", state, "--yes").exit_code == 0
    assert entry(task_id).state == then


@BOTH
def test_nothing_given_is_a_usage_error(shop: Shop, command: str, then: str) -> None:
    """A command without a filter changes nothing and names the possible filters."""
    task_id = shop.dead()
    refused = run("outbox", command, "--yes")
    assert refused.exit_code == 2
    assert "give their IDs, --state or --handler" in refused.stderr
    assert entry(task_id).state == "dead"


@pytest.mark.parametrize(("command", "state"), [("replay", "running"), ("discard", "done")])
def test_a_state_that_it_cannot_change_is_a_usage_error(shop: Shop, command: str, state: str) -> None:
    """A running delivery cannot be replayed, and a done one cannot be discarded."""
    assert run("outbox", command, "--state", state, "--yes").exit_code == 2


@BOTH
def test_none_found_is_an_error(shop: Shop, command: str, then: str) -> None:
    """A script notices a mistyped id by the exit code."""
    refused = run("outbox", command, "o1", "--yes")
    assert refused.exit_code == 1
    assert refused.stderr == "Error: no such delivery is dead; there are: none at all\n"


@BOTH
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_it_asks_before(shop: Shop, command: str, then: str, answer: str, code: int) -> None:
    """The question names the number of deliveries and their states; without a yes nothing changes."""
    task_id = shop.dead()
    asked = run("outbox", command, "--state", "dead", answer=answer)
    assert "1 delivery will" in asked.stdout
    assert "(1 dead)" in asked.stdout
    assert (asked.exit_code, entry(task_id).state) == (code, "dead" if code else then)


def test_a_dead_letter_without_a_payload_cannot_be_replayed(shop: Shop) -> None:
    """A dead letter that was parked without its row has no payload to run with."""
    facts = {"event": "order.placed", "sender": "ada", "root": None, "parent": None}
    create_tables()
    claims.dead_letter_without_row("e1", "shop.mail", "t1", facts, "its message has no row here")
    refused = run("outbox", "replay", "t1", "--yes")
    assert refused.exit_code == 1
    assert "has no payload" in refused.stderr
    assert entry("t1").state == "dead"


def test_purge_deletes_what_is_done_or_cancelled(shop: Shop) -> None:
    """Dead and open deliveries stay, and so do their emissions."""
    done, cancelled, dead, queued = shop.done(), shop.queued(), shop.dead(), shop.queued()
    operations.discard(operations.has_id_in([cancelled]))
    purged = run("outbox", "purge", "--before", "0m", "--yes")
    assert (purged.exit_code, purged.stdout) == (0, "deleted: 2 deliveries\n")
    assert [row["id"] for row in listed()] == [queued, dead]
    assert done not in {row["id"] for row in listed()}


def test_purge_deletes_only_the_states_that_are_named(shop: Shop) -> None:
    """`--state` replaces the default states."""
    done, _dead = shop.done(), shop.dead()
    assert run("outbox", "purge", "--before", "0m", "--state", "dead", "--yes").stdout == "deleted: 1 delivery\n"
    assert [row["id"] for row in listed()] == [done]


@pytest.mark.parametrize(("before", "left"), [("1m", 1), ("1h", 1), ("1d", 1), ("2020-01-01", 1), ("2999-12-31", 0)])
def test_purge_leaves_what_was_emitted_later(shop: Shop, before: str, left: int) -> None:
    """An age counts back from now, and a date is the start of that day."""
    shop.done()
    assert run("outbox", "purge", "--before", before, "--yes").exit_code == 0
    assert len(listed()) == left


@pytest.mark.parametrize(
    ("before", "age"), [("14d", timedelta(days=14)), ("12h", timedelta(hours=12)), ("30m", timedelta(minutes=30))]
)
def test_an_age_counts_back_from_now(before: str, age: timedelta) -> None:
    """An age is given in days, hours or minutes."""
    moment = outbox.Moment().convert(before, None, None)
    assert timedelta(0) <= datetime.now(UTC) - age - moment < timedelta(seconds=PATIENCE)


def test_a_date_is_its_begin_in_utc() -> None:
    """A date is midnight in UTC, in every time zone of the operator."""
    assert outbox.Moment().convert("2026-01-31", None, None) == datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    "before", ["14", "14x", "d", "-1d", "1.5d", "14d ", "²d", "9" * 9 + "d", "2026-02-30", "20260131"]
)
def test_another_moment_is_a_usage_error(shop: Shop, before: str) -> None:
    """The error names the value and the allowed formats."""
    shop.done()
    refused = run("outbox", "purge", f"--before={before}", "--yes")
    assert refused.exit_code == 2
    assert f"{before!r} is neither an age such as 14d, 12h or 30m, nor a date such as 2026-01-31" in refused.stderr
    assert len(listed()) == 1


def test_purge_goes_on_until_all_are_gone(shop: Shop) -> None:
    """Purge deletes in as many short transactions as it needs."""
    on(shop.events.event("order.placed"), offload=True, name="shop.mail")(lambda sender: None)
    with transaction():
        for _ in range(retention.DELETE_BATCH + 1):
            emit(shop.events.event("order.placed"))
    operations.discard(is_in_states(["queued"]))
    purged = run("outbox", "purge", "--before", "0m", "--yes")
    assert purged.stdout == f"deleted: {retention.DELETE_BATCH + 1} deliveries\n"
    assert listed() == []


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1)])
def test_purge_asks_before(shop: Shop, answer: str, left: int) -> None:
    """The question names the deliveries to delete; without a yes nothing is deleted."""
    shop.done()
    asked = run("outbox", "purge", "--before", "2999-12-31", answer=answer)
    assert "Delete what was emitted before 2999-12-31 00:00 UTC and is done or published or cancelled?" in asked.stdout
    assert (asked.exit_code, len(listed())) == (left, left)


def test_relay_once_moves_all_that_is_due(
    shop: Shop, sent: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay publishes batch after batch until no delivery is due."""
    monkeypatch.setattr(relay, "MAX_BATCH", 2)
    due = {shop.waiting() for _ in range(5)}
    sent()
    moved = run("relay", "--once")
    assert (moved.exit_code, moved.stdout) == (0, "moved to the broker: 5\n")
    assert {message.id for message in sent()} == due


def test_relay_once_leaves_what_is_not_due(shop: Shop, sent: Callable[..., list[Any]]) -> None:
    """The command does not wait for a delivery that is due later."""
    task_id = shop.queued("shop.later", countdown=3600)
    sent()
    moved = run("relay", "--once")
    assert (moved.exit_code, moved.stdout) == (0, "moved to the broker: 0\n")
    assert (sent(), entry(task_id).state) == ([], "waiting")


def test_relay_once_fails_when_the_broker_is_away(shop: Shop, make_app: Callable[..., Celery]) -> None:
    """The error is one line with the reason, and waiting deliveries keep waiting."""
    task_id = shop.waiting()
    bind(make_app(broker_url="amqp://127.0.0.1:1//"))
    failed = run("relay", "--once")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("Error: the broker is away: ")
    assert "refused" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert (entry(task_id).state, entry(task_id).publications) == ("waiting", 0)


def test_relay_once_fails_when_the_broker_goes_away(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker fails after its first answer: its untaken deliveries keep waiting."""
    task_id = shop.waiting()
    monkeypatch.setattr(BrokerConnection, "publish", lambda line, batch: ConnectionResetError("gone"))
    failed = run("relay", "--once")
    assert failed.exit_code == 1
    assert failed.stderr == "Error: the broker is away: it has taken 0 deliveries, and the others wait as before\n"
    assert entry(task_id).state == "waiting"
