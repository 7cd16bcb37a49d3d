"""One run, advanced to a mark of CPU-minutes and judged there; `curve.json` keeps what was found at each mark.

`spent.json` says how many minutes the checkpoint has cost: written before the judging, which takes long, so that a process
that dies there has not trained for nothing said. A checkpoint of which it says nothing is not gone on from.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.quality.judge import Judge
from bench.quality.recipes import CLASSES, settings_of
from histofed import weights
from histofed.base import durable
from histofed.base.clock import SystemClock
from histofed.base.errors import AlreadyThere, Cancelled
from histofed.base.ids import Json
from histofed.models.networks import Generator, load_floating_state
from histofed.recipes.contract import Progress
from histofed.recipes.gan.building import generator_of
from histofed.recipes.gan.central import train_centrally
from histofed.recipes.gan.central_task import CentralTask
from histofed.recipes.gan.settings import Settings, parse_value
from histofed.recipes.gan.show import Span
from histofed.tiles.store import DEFAULT_BYTES, TileStore
from histofed.training.checkpoint import CheckpointStore
from histofed.training.sheet import draw_sheet
from histofed.training.tensors import with_prefix

TILES = 1000
"""Generated for each judgement."""
COLUMNS = 12
_SPENT: Final = "spent.json"
_UNTOLD: Final = 100
"""Steps by which a checkpoint may be ahead of its row where there is no such file: older rows end at the last step told."""


class Stopwatch:
    """CPU-minutes of the loop alone, from its first step on; what earlier processes spent is added."""

    def __init__(self, before: float) -> None:
        self._before, self._begin = before, 0.0
        self.steps = 0
        self.losses: Mapping[str, float] = {}

    def phase(self, words: str) -> None:
        """Not counted: reading tiles and building networks."""

    def begin(self, span: Span) -> None:
        """The loop begins."""
        self._begin, self.steps = time.process_time(), span.first

    def progress(self, progress: Progress) -> None:
        """Remember how far it is."""
        self.steps, self.losses = progress.step, progress.losses

    def spent(self) -> float:
        """Minutes."""
        return self._before + (time.process_time() - self._begin) / 60


def advance(options: argparse.Namespace) -> None:
    """Train to the mark, judge, and write both down. A run that is at the mark already is left alone."""
    judge = Judge(options.data, options.nets, options.out)
    folder = options.out / (options.name or f"{options.recipe}-{options.seed}")
    folder.mkdir(parents=True, exist_ok=True)
    curve_file = folder / "curve.json"
    curve: list[dict[str, Json]] = json.loads(curve_file.read_text()) if curve_file.exists() else []
    if curve and float(str(curve[-1]["minutes"])) >= options.until:
        return
    run = folder / "run"
    before = minutes_spent(run, curve)
    values = dict(_value(text) for text in options.values)
    settings = settings_of(options.recipe, values)
    watch = Stopwatch(before)
    task = CentralTask(
        settings,
        judge.training_folder,
        run,
        seed=options.seed,
        device="cpu",
        threads=1,
        sheet_every=0,
        checkpoint_seconds=1e9,  # a mark is a checkpoint
        store=TileStore(options.out / "cache", DEFAULT_BYTES),
    )
    with contextlib.suppress(Cancelled):
        train_centrally(task, watch, lambda: watch.spent() >= options.until, SystemClock())
    spent = watch.spent()
    steps = note_minutes(run, spent)
    generator = released(settings, run)
    row: dict[str, Json] = {"mark": options.until, "minutes": spent, "steps": steps, "losses": dict(watch.losses)}
    row |= judge.of(generator, TILES)
    draw_sheet(generator, CLASSES, COLUMNS, options.seed, folder / f"sheet-{options.until:02g}.png")
    durable.replace(curve_file, f"{json.dumps([*curve, row], indent=1)}\n".encode(), mode=0o644)
    print(folder.name, json.dumps(row), flush=True)


def minutes_spent(run: Path, curve: Sequence[Mapping[str, Json]]) -> float:
    """CPU-minutes of the loop in the run's checkpoint. Raises `AlreadyThere` for one whose minutes nobody wrote down."""
    found = CheckpointStore(run, "").peek()
    if found is None:
        return 0.0
    noted = run / _SPENT
    rows, ahead = ([*curve, json.loads(noted.read_text())], 0) if noted.exists() else (curve[-1:], _UNTOLD)
    steps = found.state.step
    spent = next((row["minutes"] for row in reversed(rows) if 0 <= steps - int(str(row["steps"])) <= ahead), None)
    if spent is None:
        raise AlreadyThere(
            f"{run} was stopped on the way to a mark, and nobody wrote down what its {steps} steps cost: "
            "remove the folder and begin it again"
        )
    return float(str(spent))


def note_minutes(run: Path, minutes: float) -> int:
    """Write down what the run's checkpoint has cost so far; returns its steps."""
    found = CheckpointStore(run, "").peek()
    assert found is not None, "the run has just left one"
    document = {"steps": found.state.step, "minutes": minutes}
    durable.replace(run / _SPENT, json.dumps(document).encode(), mode=0o644)
    return found.state.step


def released(settings: Settings, run: Path) -> Generator:
    """The averaged generator of the checkpoint."""
    generator = generator_of(settings.draft())
    load_floating_state(generator, with_prefix(weights.read(run / "checkpoint.safetensors"), "ema."))
    return generator


def _value(text: str) -> tuple[str, Json]:
    name, _, value = text.partition("=")
    return name, parse_value(value)
