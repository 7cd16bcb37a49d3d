"""One row of `bench/results.json`, and how every bench hands its rows over (`--json FILE`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """A measured value. `target` None: told for information, nothing was promised."""

    name: str
    value: float
    unit: str
    target: float | None
    met: bool | None
    baseline: float | None
    """What the value is compared with, in the same run."""
    command: str
    least: bool = False
    """Whether the target is a floor."""


def at_most(name: str, value: float, unit: str, target: float | None, command: str, baseline: float | None = None) -> Result:
    """A row whose value should not be above `target`."""
    met = None if target is None else value <= target
    return Result(name, round(value, 9), unit, target, met, baseline, command)


def at_least(
    name: str, value: float, unit: str, target: float | None, command: str, baseline: float | None = None
) -> Result:
    """A row whose value should not be below `target`."""
    met = None if target is None else value >= target
    return Result(name, round(value, 9), unit, target, met, baseline, command, least=True)


def hand_over(rows: Sequence[Result], target: Path | None) -> None:
    """Print the rows, and write them to `target`."""
    for row in rows:
        judged = "" if row.met is None else f"  target {row.target:g}: {'met' if row.met else 'MISSED'}"
        print(f"{row.name:44} {row.value:10.4g} {row.unit:8}{judged}", flush=True)
    if target is not None:
        target.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
