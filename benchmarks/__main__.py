"""`python -m benchmarks [NAME]…`: measures the rows, each in a process of its own, and prints them as a table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from benchmarks import rows, servers
from benchmarks.table import ROWS, Result, Row, as_json, as_text, measure_row, unmeasured

ROOT = Path(__file__).parents[1]
ROW_TIMEOUT_SECONDS = 600.0


def main() -> int:
    """Prints the table; returns 0 if every measured row meets its goal, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=rows.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *ROWS], help=", ".join(ROWS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the child that measures one row
    options = parser.parse_args()
    if options.here:
        print(json.dumps(as_json([measure_row(ROWS[options.names[0]])])[0]))
        return 0
    results = sorted(_results(options.names or list(ROWS)), key=lambda result: result.number)
    print(as_text(results))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n")
    return int(any(result.met is False for result in results))


def _results(names: list[str]) -> Iterator[Result]:
    for name in names:
        print(f"{name} …", file=sys.stderr)
        row = ROWS[name]
        reason = next(filter(None, map(servers.missing_server, row.needs)), "")
        yield unmeasured(row, reason) if reason else _measured(row)


def _measured(row: Row) -> Result:
    process = run_in_process(["benchmarks", row.name, "--here"], dict(row.environ))
    if process.returncode:
        return unmeasured(row, f"failed: {(process.stderr.strip().splitlines() or ['no error output'])[-1]}")
    return Result(**json.loads(process.stdout.splitlines()[-1]))


def run_in_process(
    module: list[str], variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m` in a process and an empty folder of its own, so that rows cannot influence one another."""
    with TemporaryDirectory(prefix="bench-") as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
        environ |= {"NITRO_HOME": folder, "PYTHONPATH": str(ROOT), **variables}
        command = [sys.executable, "-m", *module]
        return subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=ROW_TIMEOUT_SECONDS, check=False
        )


if __name__ == "__main__":
    sys.exit(main())
