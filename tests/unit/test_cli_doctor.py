"""`nitro doctor`: contract section 10."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from nitro import cli
from nitro.cli import worker_checks
from nitro.infrastructure.database import reset, write_connection
from nitro.infrastructure.events import Event, Namespace, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.outbox import claims, heartbeat, versions
from nitro.infrastructure.outbox.schema import deliveries, schema_versions

NOBODY = "redis://127.0.0.1:1/0"


@pytest.fixture
def evt() -> Event:
    """An event that only this test uses."""
    return Namespace().event("order.placed")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The handlers that each running worker reports; each worker consumes the default queue."""
    told: dict[str, list[str]] = {}

    def inspect(**_options: Any) -> Any:
        return SimpleNamespace(
            registered=lambda: told or None,
            active_queues=lambda: {name: [{"name": "celery"}] for name in told},
            active=dict,
            stats=dict,
        )

    monkeypatch.setattr("celery.app.control.Control.inspect", property(lambda _: inspect))
    monkeypatch.setattr("celery.app.control.Control.broadcast", lambda *_args, **_options: [])
    return told


def found(code: int) -> dict[str, tuple[str, str]]:
    """Returns verdict and finding of each check; the command must end with this exit code."""
    done = CliRunner().invoke(cli.nitro, ["doctor", "--json"], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return {each["check"]: (each["verdict"], each["found"]) for each in json.loads(done.stdout)}


@pytest.fixture
def handled(evt: Event, app: Celery) -> Event:
    """An event with a tracked handler."""
    on(evt, offload=True, name="shop.mail")(lambda sender: None)
    return evt


def test_all_is_fine(handled: Event, registered: dict[str, list[str]]) -> None:
    """Each check is one line with the verdict `fine`."""
    registered["one@shop"] = ["celery.ping", "shop.mail [rate_limit=1/s]"]
    assert {check: verdict for check, (verdict, _) in found(0).items()} == dict.fromkeys(
        ("database", "tables", "dead letters", "broker", "workers", "handlers", "stuck"), "fine"
    )
    told = CliRunner().invoke(cli.nitro, ["doctor"]).stdout.splitlines()
    assert told[0].split() == ["CHECK", "FOUND"]
    assert all(line.startswith("fine  ") for line in told[1:])


def test_no_worker_is_a_warning(handled: Event, registered: dict[str, list[str]]) -> None:
    """A missing worker is no error, because one may start later; the finding has the start command."""
    verdict, told = found(0)["workers"]
    assert (verdict, told) == ("warning", "none answers; start one: celery -A <your app> worker")


def test_a_worker_that_beats_and_does_not_answer_is_named(
    handled: Event, registered: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with heartbeats and no answer is a warning, and no handler is reported missing for it."""
    heartbeat.record_heartbeat("boot-1", "solo@shop")
    heartbeat.record_heartbeat("boot-2", "killed@shop")
    registered["one@shop"] = ["celery.ping"]
    monkeypatch.setattr(worker_checks, "sleep", lambda _seconds: heartbeat.record_heartbeat("boot-1", "solo@shop"))
    checks = found(0)
    assert checks["workers"] == ("warning", "one@shop; solo@shop lives but does not answer (busy under -P solo?)")
    assert checks["handlers"][0] == "warning"


def test_a_handler_that_no_worker_knows_is_wrong(handled: Event, registered: dict[str, list[str]]) -> None:
    """A handler that no worker has registered is an error that names NITRO_HANDLERS."""
    registered["one@shop"] = ["celery.ping"]
    verdict, told = found(1)["handlers"]
    assert verdict == "wrong"
    assert "shop.mail" in told
    assert "NITRO_HANDLERS" in told


def late(seconds: float) -> None:
    """Moves the begin of all open deliveries into the past."""
    with write_connection() as connection:
        connection.execute(deliveries.update().values(due_since=deliveries.c.due_since - seconds))


def lines(check: str) -> list[tuple[str, str]]:
    """Returns verdict and finding of each line of a check."""
    told = json.loads(CliRunner().invoke(cli.nitro, ["doctor", "--json"], catch_exceptions=False).stdout)
    return [(each["verdict"], each["found"]) for each in told if each["check"] == check]


def test_what_is_stuck_is_wrong_with_its_reason(handled: Event, registered: dict[str, list[str]]) -> None:
    """Each handler and queue has a line with its reason: no worker for the queue, or an unknown handler."""
    other = Namespace().event("order.paid")
    on(other, offload={"queue": "bills"}, name="shop.bill")(lambda sender: None)
    registered["one@shop"] = ["shop.mails", "shop.bill"]
    for _ in range(3):
        emit(other)
    emit(handled)
    late(600)
    emit(handled)
    assert found(1)["stuck"][0] == "wrong"
    mail = "1 delivery to shop.mail in queue celery queued, the oldest for 10m"
    bill = "3 deliveries to shop.bill in queue bills queued, the oldest for 10m"
    assert sorted(lines("stuck")) == [
        ("wrong", f"{mail}: no worker knows handler shop.mail (nearest: shop.mails)"),
        ("wrong", f"{bill}: no worker consumes queue bills (consumed: celery)"),
    ]


def test_what_is_stuck_is_wrong_without_a_worker(handled: Event, registered: dict[str, list[str]]) -> None:
    """A stuck delivery without a worker is an error; the missing worker alone is a warning."""
    emit(handled)
    late(600)
    assert found(1)["stuck"][1].endswith("no worker answers")


def test_the_greatest_age_can_be_given(handled: Event, registered: dict[str, list[str]]) -> None:
    """`--max-age` raises the age from which a delivery counts as stuck."""
    emit(handled)
    late(600)
    done = CliRunner().invoke(cli.nitro, ["doctor", "--max-age", "1h"], catch_exceptions=False)
    assert (done.exit_code, "stuck" in done.output) == (0, True)


def test_a_broker_that_is_away_is_the_reason(
    make_app: Callable[..., Celery], evt: Event, registered: dict[str, list[str]]
) -> None:
    """The reason is the unreachable broker, because workers cannot be asked."""
    bind(make_app(broker_url=NOBODY))
    on(evt, offload=True, name="shop.mail")(lambda sender: None)
    emit(evt)
    late(600)
    assert "broker away since" in found(1)["stuck"][1]
    with write_connection() as connection:
        connection.execute(deliveries.update().values(state="running", started_at=1.0))
    assert "it runs still" in found(1)["stuck"][1]


def test_a_queue_that_no_worker_consumes_is_a_warning(
    evt: Event, app: Celery, registered: dict[str, list[str]]
) -> None:
    """The queue is reported before a delivery is stuck in it."""
    on(evt, offload={"queue": "bills"}, name="shop.bill")(lambda sender: None)
    registered["one@shop"] = ["shop.bill"]
    verdict, told = found(0)["queues"]
    assert (verdict, "no worker consumes queue bills" in told) == ("warning", True)


def test_no_handler_at_all_is_a_warning(app: Celery, registered: dict[str, list[str]]) -> None:
    """A project without declared handlers gets a warning."""
    assert found(0)["handlers"][0] == "warning"


def test_a_check_that_cannot_be_made_is_wrong(
    handled: Event, registered: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crashed check is wrong, and all other checks still run."""
    monkeypatch.setattr("celery.app.control.Control.broadcast", lambda *_args, **_options: 1 / 0)
    registered["one@shop"] = ["shop.mail"]
    checks = found(1)
    assert checks["workers"] == ("wrong", "ZeroDivisionError: division by zero")
    assert checks["stuck"][0] == "fine"


def test_a_broker_that_is_away_is_wrong(make_app: Callable[..., Celery]) -> None:
    """The finding names the broker's address."""
    bind(make_app(broker_url=NOBODY))
    verdict, told = found(1)["broker"]
    assert verdict == "wrong"
    assert "127.0.0.1:1" in told


def test_a_database_that_is_away_is_wrong(
    app: Celery, registered: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding names the address, and the other checks still run."""
    monkeypatch.setenv("NITRO_DB_URL", "postgresql+psycopg://postgres@127.0.0.1:1/nowhere")
    reset()
    checks = found(1)
    assert checks["database"][0] == "wrong"
    assert "127.0.0.1" in checks["database"][1]
    assert checks["broker"][0] == "fine"


def test_tables_of_another_version_are_wrong(handled: Event, registered: dict[str, list[str]]) -> None:
    """The finding says to update the library."""
    emit(handled)
    later = versions.VERSION + 1
    with write_connection() as connection:
        connection.execute(schema_versions.update().values(version=later, usable_from=later))
    reset()
    verdict, told = found(1)["tables"]
    assert verdict == "wrong"
    assert "update the library" in told


def test_dead_letters_are_a_warning(handled: Event, registered: dict[str, list[str]]) -> None:
    """The finding has the command that lists the dead letters."""
    run = claims.claim(emit(handled).id, "shop.mail", "boot/1")
    assert isinstance(run, claims.Claim)
    claims.dead_letter(run, "no")
    assert found(0)["dead letters"] == (
        "warning",
        "1 delivery; see: celery -A <your app> nitro outbox list --state dead",
    )


def test_tracked_handlers_without_a_shared_database_are_wrong(
    evt: Event, make_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracked handler without NITRO_DB_URL is an error, because each emit to it would raise."""
    monkeypatch.delenv("NITRO_DB_URL")
    reset()
    bind(make_app(broker_url=NOBODY))
    on(evt, offload=True, name="shop.mail")(lambda sender: None)
    verdict, told = found(1)["outbox"]
    assert verdict == "wrong"
    assert "NITRO_DB_URL" in told


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        ({"task_always_eager": True}, "task_always_eager"),
        ({"task_time_limit": 7200}, "visibility_timeout=3600 is shorter than task_time_limit=7200"),
        ({}, "messages are not signed"),
    ],
)
def test_settings_that_endanger_a_promise_are_a_warning(
    make_app: Callable[..., Celery], conf: dict[str, Any], says: str
) -> None:
    """A risky setting may be intended, so the verdict is a warning."""
    bind(make_app(broker_url=NOBODY, **conf))
    told = CliRunner().invoke(cli.nitro, ["doctor", "--json"]).stdout
    assert [each["verdict"] for each in json.loads(told) if says in each["found"]] == ["warning"]


@pytest.mark.parametrize(
    "says", ["worker_prefetch_multiplier=4", "broker_connection_max_retries=100", "no socket_timeout"]
)
def test_settings_of_a_worker_that_make_deliveries_wait_are_a_warning(
    make_app: Callable[..., Celery], says: str
) -> None:
    """`bind` does not change these settings, and each finding names the recommended value."""
    bind(make_app(broker_url=NOBODY))
    told = CliRunner().invoke(cli.nitro, ["doctor", "--json"]).stdout
    (finding,) = [each for each in json.loads(told) if says in each["found"]]
    assert (finding["verdict"], "recommended: " in finding["found"]) == ("warning", True)


def test_recommended_settings_of_a_worker_are_no_finding(make_app: Callable[..., Celery]) -> None:
    """Workers with the recommended settings get no recommendation."""
    options = {"broker_transport_options": {"socket_timeout": 5}}
    more = {"worker_prefetch_multiplier": 1, "broker_connection_max_retries": None}
    bind(make_app(broker_url=NOBODY, **options, **more))
    assert "recommended: " not in CliRunner().invoke(cli.nitro, ["doctor", "--json"]).stdout


@pytest.mark.parametrize(("accepted", "wrong"), [(["yaml"], True), (["application/json"], False), (["json"], False)])
def test_workers_that_refuse_json_are_wrong(make_app: Callable[..., Celery], accepted: list[str], wrong: bool) -> None:
    """A worker whose `accept_content` lacks JSON cannot run handlers."""
    bind(make_app(accept_content=accepted))
    told = json.loads(CliRunner().invoke(cli.nitro, ["doctor", "--json"]).stdout)
    assert any("accept_content" in each["found"] and each["verdict"] == "wrong" for each in told) is wrong
