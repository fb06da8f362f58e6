"""The short form of each chaos scenario finds no lost and no repeated effect after real faults of real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from stacks import missing
from tests.chaos.mutants import MUTANTS, Mutant
from tests.chaos.scenarios import SCENARIOS, Run, Scenario
from tests.chaos.server import MissingServer
from tests.chaos.servers import Servers, own

FULL_SIZE_ONLY = {
    "emitter_kills": ("redis", "rabbitmq"),
    "relay_kills": ("embedded", "rabbitmq"),
    "broker_faults": ("rabbitmq",),
    "database_away": ("rabbitmq",),
    "external_effect": ("embedded", "redis"),
    "frozen_worker": ("embedded", "rabbitmq"),
    "frozen_in_transaction": ("rabbitmq",),
    "four_relays": ("rabbitmq",),
    "rolling_restart": ("redis", "rabbitmq"),
    "without_handler": ("redis", "rabbitmq"),
    "poison": ("redis", "rabbitmq"),
    "memory_hog": ("embedded", "redis"),
    "clock": ("redis", "rabbitmq"),
}
"""Stacks on which the short form adds little to the other stacks."""


FOUND_BY_CONTRACT_TESTS = ("no-ledger", "no-fence")
"""Mutants that a short run finds by chance only; `tests/unit/outbox/test_outbox_mutants.py` finds them each time."""


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Servers of the module, which may be killed.

    Their folder is outside of pytest's, which the servers' users may not enter.
    """
    with TemporaryDirectory(prefix="chaos-") as folder, own(Path(folder)) as running:
        yield running


def marked(name: str, stack: str, *values: object) -> object:
    """Returns a parameter set, marked if its stack needs a server."""
    return pytest.param(*values, stack, marks=[] if stack == "embedded" else [pytest.mark.server], id=f"{name}-{stack}")


@pytest.fixture
def run(servers: Servers, tmp_path: Path, stack_name: str) -> Run:
    """A run of the short size."""
    return Run(servers=servers, folder=tmp_path / "world", stack=stack_name)


@pytest.mark.parametrize(
    ("scenario", "stack_name"),
    [
        marked(each.name, stack, each)
        for each in SCENARIOS.values()
        for stack in each.stacks
        if stack not in FULL_SIZE_ONLY.get(each.name, ())
    ],
)
def test_nothing_is_lost_or_done_twice(scenario: Scenario, run: Run) -> None:
    """No scenario loses or repeats an effect, whatever is killed, frozen, emptied or set wrong."""
    try:
        outcome = scenario(run)
    except MissingServer as error:
        missing(run.stack, str(error))
    assert outcome.wrong == [], outcome


@pytest.mark.parametrize(
    ("mutant", "stack_name"),
    [marked(each.name, each.stack, each) for each in MUTANTS.values() if each.name not in FOUND_BY_CONTRACT_TESTS],
)
def test_a_missing_safeguard_is_found_out(mutant: Mutant, run: Run) -> None:
    """Each mutant makes its scenario fail; otherwise the scenario would prove nothing."""
    try:
        outcome = mutant(run)
    except MissingServer as error:
        missing(run.stack, str(error))
    assert outcome.wrong == [], outcome
