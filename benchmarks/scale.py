"""`python -m benchmarks.scale [NAME]…`: draws the growth of time and memory, and checks it against limits."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.__main__ import run_in_process
from benchmarks.growth import GROWTH, Curve


def main() -> int:
    """Prints the curves; returns 0 if none grows faster than its limit, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *GROWTH], help=", ".join(GROWTH))
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw the curves into FILE")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the child that measures one
    options = parser.parse_args()
    if options.here:
        print(json.dumps([asdict(curve) for curve in GROWTH[options.names[0]]()]))
        return 0
    curves = list(_measured(options.names or list(GROWTH)))
    print(_as_text(curves))
    if options.svg is not None:
        _draw(curves, options.svg)
    return int(not all(curve.ok for curve in curves))


def _measured(names: Iterable[str]) -> Iterator[Curve]:
    """Yields the curves, each measured in a process and a folder of its own."""
    for name in names:
        print(f"{name} …", file=sys.stderr)
        process = run_in_process(["benchmarks.scale", name, "--here"])
        if process.returncode:
            raise SystemExit(f"{name} failed:\n{process.stderr}")
        yield from (Curve(**fields) for fields in json.loads(process.stdout.splitlines()[-1]))


def _as_text(curves: Iterable[Curve]) -> str:
    """Returns a Markdown table."""
    lines = ["| what | by | from | to | grows by the power | at most | |", "|---|---|---|---|---|---|---|"]
    for curve in curves:
        (min_size, first), (max_size, last) = curve.points[0], curve.points[-1]
        sign = "✓" if curve.ok else "✗"
        ends = f"{first:.4g} at {min_size:g} | {last:.4g} at {max_size:g}"
        lines.append(f"| {curve.what} | {curve.by} | {ends} | {curve.exponent:.2f} | {curve.max_exponent:g} | {sign} |")
    return "\n".join(lines)


def _draw(curves: Sequence[Curve], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "nitro"  # the same figures make the same file
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 4, figsize=(16, 7), layout="constrained")
    for panel in panels.flat[len(curves) :]:
        panel.remove()
    for curve, panel in zip(curves, panels.flat, strict=False):
        sizes, values = zip(*curve.points, strict=True)
        panel.loglog(sizes, values, "o-", base=10)
        panel.loglog(sizes, [values[0] * (size / sizes[0]) ** curve.max_exponent for size in sizes], ":", color="gray")
        panel.set(title=f"{curve.what}\ngrows by the power {curve.exponent:.2f}", xlabel=curve.by)
        panel.set_ylim(min(values) / 3, max(values) * 3)
        panel.grid(alpha=0.3)
    figure.suptitle("Growth of Nitro; dotted: the limit")
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
