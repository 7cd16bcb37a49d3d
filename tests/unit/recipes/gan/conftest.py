"""A run in one place and a site's task that take seconds, for this folder's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from histofed.base.ids import Json
from histofed.recipes.contract import Progress, Stop, TrainTask
from histofed.recipes.gan.central import train_centrally
from histofed.recipes.gan.central_task import CentralTask
from histofed.recipes.gan.recipe import GanRecipe
from histofed.recipes.gan.settings import Settings
from histofed.recipes.gan.show import Span
from tests.support.tiles import TilesRoot

TABLE: Mapping[str, Any] = {"image_size": 32, "batch": 4, "latent": 8, "discriminator": {"name": "cnn"}, "flips": True}
"""Of a run in one place."""
CONFIG: Mapping[str, Any] = {**TABLE, "steps": 3}
"""Of a site's task."""
WORKSHOP = GanRecipe().workshop()


class Ticking:
    """A clock on which every look takes a second, so that each step is reported."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        self.seconds += 1
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody waits here")


@dataclass
class Seen:
    """What a run showed."""

    phases: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    steps: list[Progress] = field(default_factory=list)

    def phase(self, words: str) -> None:
        self.phases.append(words)

    def begin(self, span: Span) -> None:
        self.spans.append(span)

    def progress(self, progress: Progress) -> None:
        self.steps.append(progress)


def stop_after(steps: int) -> Stop:
    """Asked before every step."""
    answers: Iterator[bool] = iter([False] * steps + [True] * 99)
    return lambda: next(answers)


@dataclass(frozen=True)
class Runner:
    """Trains in one place."""

    data: Path
    folder: Path
    seen: Seen = field(default_factory=Seen)

    def task(self, name: str = "out", steps: int | None = 6, table: Mapping[str, Any] = TABLE, **more: Any) -> CentralTask:
        settings = Settings("small", None, table, steps, None)
        task = CentralTask(settings, self.data, self.folder / name, device="cpu", threads=1, sheet_every=0)
        return replace(task, **more)

    def __call__(self, name: str = "out", stop: Stop = lambda: False, **more: Any) -> Mapping[str, Json]:
        return train_centrally(self.task(name, **more), self.seen, stop, Ticking())

    def model(self, name: str) -> bytes:
        return (self.folder / name / "model.safetensors").read_bytes()


@pytest.fixture
def run(tiles_root: TilesRoot, tmp_path: Path) -> Runner:
    return Runner(tiles_root.path, tmp_path)


MakeRunner = Callable[[Path], Runner]


@pytest.fixture
def run_on(tmp_path: Path) -> MakeRunner:
    """A runner on other tiles."""
    return lambda data: Runner(data, tmp_path)


def stretches(record: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    found = record["stretches"]
    assert isinstance(found, list)
    return found


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def site_task(folder: Path, data: Path, **config: Any) -> TrainTask:
    """A site's first task, with fresh weights."""
    merged = {**CONFIG, **config}
    folder.mkdir(parents=True, exist_ok=True)
    WORKSHOP.initialise(merged, 1, folder / "global.safetensors")
    (folder / "out").mkdir()
    return TrainTask(merged, folder / "global.safetensors", None, data, 2, 7, folder / "out", 1, "cpu")


def train_task(task: TrainTask) -> dict[str, bytes]:
    """Train to the end; what was made."""
    WORKSHOP.train(task, lambda _: None, lambda: False)
    return made(task)


def made(task: TrainTask) -> dict[str, bytes]:
    """What lies in a task's folder, but its checkpoint."""
    return {path.name: path.read_bytes() for path in task.output.iterdir() if path.name != "checkpoint.safetensors"}
