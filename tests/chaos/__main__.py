"""`python -m tests.chaos` runs scenarios and mutants and prints their outcomes; the exit code is 1 if any is wrong."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.mutants import MUTANTS, Mutant
from tests.chaos.outcome import Outcome, as_json, as_table
from tests.chaos.processes import NotInTime
from tests.chaos.scenarios import SCENARIOS, Run, Scenario
from tests.chaos.server import MissingServer
from tests.chaos.servers import Servers, own
from tests.chaos.world import STACKS

SEEDED = {"worker_kills": 3}
"""Scenarios whose full size has several seeds."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    names = [*SCENARIOS, *MUTANTS, "mutants"]
    parser.add_argument("scenarios", nargs="*", choices=[*names, []], metavar="SCENARIO", help=", ".join(names))
    parser.add_argument("--stack", choices=[*STACKS, "all"], default="all")
    parser.add_argument("--size", choices=["short", "full"], default="short")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="an array of objects instead of a table")
    parser.add_argument("--keep", action="store_true", help="keep the folder with databases and logs")
    return parser.parse_args()


def _plan(arguments: argparse.Namespace) -> Iterator[tuple[Scenario | Mutant, str, int]]:
    """Yields the scenarios and mutants to run, each with its stack and seed."""
    wanted = arguments.scenarios or [*SCENARIOS, "mutants"]
    wanted = [name for given in wanted for name in (MUTANTS if given == "mutants" else [given])]
    for name in wanted:
        what = SCENARIOS.get(name) or MUTANTS[name]
        stacks = what.stacks if isinstance(what, Scenario) else (what.stack,)
        seeds = SEEDED.get(name, 1) if arguments.size == "full" else 1
        for stack in stacks:
            if arguments.stack in (stack, "all"):
                yield from ((what, stack, arguments.seed + more) for more in range(seeds))


def _outcomes(arguments: argparse.Namespace, servers: Servers, folder: Path) -> Iterator[Outcome]:
    for what, stack, seed in _plan(arguments):
        full = arguments.size == "full" and isinstance(what, Scenario)
        place = folder / f"{what.name}-{stack}-{seed}"
        print(f"{what.name} on {stack}, seed {seed} …", file=sys.stderr, flush=True)
        outcome = what(Run(servers=servers, folder=place, stack=stack, full=full, seed=seed))
        print(as_table([outcome]).splitlines()[-1], file=sys.stderr, flush=True)
        yield outcome


def main() -> int:
    """Runs the chosen scenarios, and returns the exit code."""
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        with own(folder) as servers:
            outcomes = list(_outcomes(arguments, servers, folder))
    except (MissingServer, NotInTime) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if arguments.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    print(as_json(outcomes) if arguments.json else as_table(outcomes))
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
