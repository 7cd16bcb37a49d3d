"""One experiment of the demo: submitted, watched to its end with a sample sheet for each model, and what is told of it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .commands import Operator
from .daemons import Daemon, DemoError
from .layout import Layout, write_experiment
from .report import Facts
from .wishes import Wishes

SHEET_SEED = 7
"""The same noise on every sheet, so that a column shows one sample growing up."""


def submit(layout: Layout, wishes: Wishes, operator: Operator) -> str:
    """Submit under the next free name: demo, demo-2, ..."""
    there = {one["name"] for one in operator.ask("experiments", "list")["experiments"]}
    name = next(name for name in ("demo", *(f"demo-{number}" for number in range(2, 1000))) if name not in there)
    source = wishes.experiment.read_text(encoding="utf-8")
    write_experiment(source, layout, name=name, rounds=wishes.rounds, size=wishes.size)
    operator.ask("experiments", "submit", layout.experiment)
    return name


def watch(layout: Layout, name: str, operator: Operator, daemons: Sequence[Daemon]) -> None:
    """The live view to the experiment's end; a sample sheet for each model as it appears."""
    view = operator.watching(name)
    try:
        while view.poll() is None:
            for daemon in daemons:
                daemon.require()
            _draw_sheets(layout, name, operator)
            with contextlib.suppress(subprocess.TimeoutExpired):
                view.wait(2.0)
    finally:
        if view.poll() is None:
            view.terminate()
            view.wait()
    if view.returncode:
        raise DemoError(f"experiment {name} did not finish; see {daemons[0].log}")
    _draw_sheets(layout, name, operator)


def _draw_sheets(layout: Layout, name: str, operator: Operator) -> None:
    """One per model that has none yet; the tensors are pulled, verified, drawn and thrown away."""
    for model in operator.ask("models", "list", name)["models"]:
        target = layout.sheet(model["round"])
        if target.exists() or not any(part["release"] for part in model["parts"]):
            continue
        tensors = layout.samples / ".tensors"
        operator.ask("models", "pull", model["digest"], "--out", tensors)
        script = Path(__file__).resolve().with_name("sheet.py")
        drawing = [sys.executable, str(script), str(layout.experiment), str(tensors), str(SHEET_SEED), str(target)]
        ended = subprocess.run(drawing, capture_output=True, text=True, check=False, timeout=600)
        for file in layout.samples.glob(".tensors*"):
            file.unlink()
        if ended.returncode:
            raise DemoError(f"the sample sheet of round {model['round']} could not be drawn: {ended.stderr.strip()}")


def facts_of(
    layout: Layout, wishes: Wishes, name: str, operator: Operator, verified: dict[str, object], seconds: float
) -> Facts:
    """What the report is made of, asked while the aggregator still runs."""
    rounds = [one["round"] for one in operator.ask("rounds", "list", name)["rounds"]]
    return Facts(
        experiment=operator.ask("experiments", "show", name),
        rounds=[operator.ask("rounds", "show", name, str(number))["round"] for number in rounds],
        sites=operator.ask("sites", "list")["sites"],
        status=operator.ask("status"),
        verified=verified,
        sheets={number: layout.sheet(number) for number in (0, *rounds) if layout.sheet(number).exists()},
        data="real tiles, split by patient" if wishes.data else "drawn tiles",
        seconds=seconds,
    )


def require_all_committed(facts: Facts) -> None:
    """Raises `DemoError` for a round that did not commit, or has no sample sheet."""
    committed = [one["round"] for one in facts.rounds if one["state"] == "committed"]
    wanted = facts.experiment["experiment"]["rounds"]
    missing = [number for number in committed if number not in facts.sheets]
    if len(committed) != wanted:
        raise DemoError(f"{len(committed)} of {wanted} rounds committed")
    if missing:
        raise DemoError(f"rounds without a sample sheet: {missing}")
