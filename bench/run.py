"""`make bench`: every bench in a process of its own, one table, and `bench/results.json`.

    .venv/bin/python bench/run.py [NAME ...]    # start idle aggregate encodings transfer cache training demo; all by default

Values are ratios to a peer of the same run where there is one, so that they mean the same on every machine. A missed
target is written as missed and is no failure; the exit code is 1 when a bench could not measure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BENCHES = ("start", "idle", "aggregate", "encodings", "transfer", "cache", "training", "demo")
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results.json"
LIMIT_S = 900
"""Seconds after which a bench counts as crashed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {' '.join(BENCHES)} (all by default)")
    names = parser.parse_args().names or BENCHES
    if unknown := sorted({*names} - {*BENCHES}):
        parser.error(f"there is no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    rows: list[dict[str, Any]] = []
    crashed: list[str] = []
    for name in names:
        print(f"-- {name}", flush=True)
        found = measure(name)
        if found is None:
            crashed.append(name)
        rows.extend(found or [])
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"\n{table(rows)}\n\nwritten to {RESULTS.relative_to(ROOT)}")
    if crashed:
        print(f"could not measure: {', '.join(crashed)} (see above)", file=sys.stderr)
    return 1 if crashed else 0


def measure(name: str) -> list[dict[str, Any]] | None:
    """The rows of one bench; None when it crashed or hung."""
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as folder:
        target = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"bench.{name}", "--json", str(target)]
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=LIMIT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            print(f"{name}: not done after {LIMIT_S} s", file=sys.stderr)
            return None
        if code != 0:
            print(f"{name}: ended with exit code {code}", file=sys.stderr)
            return None
        rows: list[dict[str, Any]] = json.loads(target.read_text())
        return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    cells = [("what", "value", "unit", "target", "")]
    for row in rows:
        target = "-" if row["target"] is None else f"{'>=' if row['least'] else '<='} {row['target']:g}"
        met = {None: "", True: "met", False: "MISSED"}[row["met"]]
        cells.append((row["name"], f"{row['value']:.4g}", row["unit"], target, met))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


if __name__ == "__main__":
    sys.exit(main())
