"""Two processes train as one does that plays the batch in two parts. Several seconds each: a process imports torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from histofed.base.errors import Cancelled, ConfigError, TrainingFailed, TryLater
from histofed.recipes.contract import Progress, TrainTask
from histofed.recipes.gan.recipe import GanRecipe
from histofed.tiles.draw import draw_tiles
from histofed.tiles.store import TileStore
from tests.unit.recipes.gan.conftest import MakeRunner, Runner, Seen, files, made

WORKSHOP = GanRecipe().workshop()
CONFIG: Mapping[str, Any] = {
    "image_size": 32,
    "steps": 3,
    "batch": 4,
    "latent": 8,
    "generator": "deep",
    "discriminator": {"name": "cnn", "norm": "none", "spectral_norm": True, "dropout": 0.25},
    "objective": {"name": "hinge", "r1": 0.1, "penalty_every": 2},
    "augment": {},
    "lecam": {},
    "textures": 0.5,
    "muon_rate": 2e-3,
    "decay": {"after": 1, "half_life": 1},
    "flips": True,
    "persist_moments": True,
}


def _task(folder: Path, data: Path, **config: Any) -> TrainTask:
    merged = {**CONFIG, **config}
    (folder / "out").mkdir(parents=True)
    WORKSHOP.initialise(merged, 1, folder / "global.safetensors")
    return TrainTask(merged, folder / "global.safetensors", None, data, 2, 7, folder / "out", 1, "cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw_tiles(tmp_path / "tiles", patients_per_class=2, tiles_per_patient=3, size=32)
    return tmp_path / "tiles"


@pytest.mark.slow
def test_two_processes_end_in_the_bytes_of_one_also_when_stopped_between(data: Path, tmp_path: Path) -> None:
    alone = _task(tmp_path / "one", data, accumulate=2)
    whole = WORKSHOP.train(alone, lambda _: None, lambda: False)
    two = replace(_task(tmp_path / "two", data, accumulate=2), devices=2)
    answers: Iterator[bool] = iter([False, True])
    with pytest.raises(Cancelled, match="after 1 of 3 steps"):
        WORKSHOP.train(two, lambda _: None, lambda: next(answers))
    assert files(two.output) == ["checkpoint.safetensors"]
    seen: list[Progress] = []
    together = WORKSHOP.train(two, seen.append, lambda: False)
    assert made(two) == made(alone)
    assert together == whole
    assert seen[-1].step == 3


@pytest.mark.slow
def test_a_killed_process_ends_the_task_in_words(data: Path, tmp_path: Path) -> None:
    def kill(_: Progress) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    def reported_at_once() -> bool:
        kill(Progress(0, 0))
        return False

    task = replace(_task(tmp_path / "two", data), devices=2)
    with pytest.raises(TrainingFailed, match="process 2 of 2 of this training was killed by signal 9"):
        WORKSHOP.train(task, kill, reported_at_once)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_batch_norm_on_several_devices_is_refused(data: Path, tmp_path: Path) -> None:
    task = replace(_task(tmp_path / "two", data, generator="paper-cnn"), devices=2)
    with pytest.raises(ConfigError, match="the generator of this experiment has batch norm"):
        WORKSHOP.train(task, lambda _: None, lambda: False)


def test_a_batch_that_cannot_be_dealt_is_refused(data: Path, tmp_path: Path) -> None:
    task = replace(_task(tmp_path / "three", data), devices=3)
    with pytest.raises(ConfigError, match=r"a batch of 4 cannot be dealt to 3 devices.* lower devices"):
        WORKSHOP.train(task, lambda _: None, lambda: False)


@pytest.mark.slow
def test_training_in_one_place_on_two_processes_ends_in_the_model_of_one(run: Runner) -> None:
    table = {**CONFIG, "accumulate": 2}
    del table["steps"]
    for name, devices in (("one", 1), ("two", 2)):
        run(name, steps=2, table=table, devices=devices, store=TileStore(run.folder / "cache"))
    assert run.model("one") == run.model("two")
    assert run.seen.steps[-1].step == 2
    first = run("two", steps=2, table=table, devices=2, store=TileStore(run.folder / "cache"), restart=True)
    assert (first["step"], run.model("two")) == (2, run.model("one")), "none of them went on from the run before"


@pytest.mark.slow
def test_a_tile_that_comes_between_the_processes_readings_takes_no_run_away(
    run_on: MakeRunner, data: Path, tmp_path: Path
) -> None:
    late = min(path for path in data.rglob("*") if path.is_file())
    late.rename(tmp_path / late.name)

    class Arrives(Seen):
        def phase(self, words: str) -> None:
            if words == "building networks":
                (tmp_path / late.name).rename(late)

    table = {key: value for key, value in CONFIG.items() if key != "steps"}
    run_on(data)(steps=2, table=table)
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    run = replace(run_on(data), seen=Arrives())
    with pytest.raises(TryLater, match="the tiles changed while this training started; start it again"):
        run(steps=2, table=table, devices=2, restart=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == kept
