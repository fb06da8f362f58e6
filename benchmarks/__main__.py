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
from benchmarks.table import ROWS, Result, Row, as_json, as_text, missing, result

ROOT = Path(__file__).parents[1]
LONGEST = 600.0
"""Seconds for one row."""


def main() -> int:
    """0 when every goal that could be measured is met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=rows.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *ROWS], help=", ".join(ROWS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the child that measures one row
    options = parser.parse_args()
    if options.here:
        print(json.dumps(as_json([result(ROWS[options.names[0]])])[0]))
        return 0
    results = sorted(_results(options.names or list(ROWS)), key=lambda each: each.number)
    print(as_text(results))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n")
    return int(any(each.met is False for each in results))


def _results(names: list[str]) -> Iterator[Result]:
    for name in names:
        print(f"{name} …", file=sys.stderr)
        row = ROWS[name]
        why = next(filter(None, map(servers.unreachable, row.needs)), "")
        yield missing(row, why) if why else _measured(row)


def _measured(row: Row) -> Result:
    done = apart(["benchmarks", row.name, "--here"], dict(row.environ))
    if done.returncode:
        return missing(row, f"failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}")
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def apart(module: list[str], more: Mapping[str, str] = MappingProxyType({})) -> subprocess.CompletedProcess[str]:
    """Run `python -m` in a process and a folder of its own, so that nothing finds what another one has left."""
    with TemporaryDirectory(prefix="bench-") as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
        environ |= {"NITRO_HOME": folder, "PYTHONPATH": str(ROOT), **more}
        command = [sys.executable, "-m", *module]
        return subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=LONGEST, check=False
        )


if __name__ == "__main__":
    sys.exit(main())
