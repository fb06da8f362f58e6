"""`python -m benchmarks.scale [NAME]…`: draws how time and memory grow, and says whether anything grows too fast."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.__main__ import apart
from benchmarks.growth import GROWTH, Curve


def main() -> int:
    """0 when nothing grows faster than it may, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *GROWTH], help=", ".join(GROWTH))
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the curves there, too")
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
    """Each in a process and a folder of its own."""
    for name in names:
        print(f"{name} …", file=sys.stderr)
        done = apart(["benchmarks.scale", name, "--here"])
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr}")
        yield from (Curve(**facts) for facts in json.loads(done.stdout.splitlines()[-1]))


def _as_text(curves: Iterable[Curve]) -> str:
    """A Markdown table."""
    lines = ["| what | by | from | to | grows by the power | at most | |", "|---|---|---|---|---|---|---|"]
    for curve in curves:
        (least, first), (most, last) = curve.points[0], curve.points[-1]
        sign = "✓" if curve.ok else "✗"
        ends = f"{first:.4g} at {least:g} | {last:.4g} at {most:g}"
        lines.append(f"| {curve.what} | {curve.by} | {ends} | {curve.exponent:.2f} | {curve.most:g} | {sign} |")
    return "\n".join(lines)


def _draw(curves: Sequence[Curve], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "nitro"  # the same figures make the same file
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, 4, figsize=(16, 7), layout="constrained")
    for place in places.flat[len(curves) :]:
        place.remove()
    for curve, place in zip(curves, places.flat, strict=False):
        sizes, values = zip(*curve.points, strict=True)
        place.loglog(sizes, values, "o-", base=10)
        place.loglog(sizes, [values[0] * (size / sizes[0]) ** curve.most for size in sizes], ":", color="gray")
        place.set(title=f"{curve.what}\ngrows by the power {curve.exponent:.2f}", xlabel=curve.by)
        place.set_ylim(min(values) / 3, max(values) * 3)
        place.grid(alpha=0.3)
    figure.suptitle("How Nitro grows; dotted: as fast as it may")
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
