"""The torch-free recipe keeps every promise of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histofed import weights
from histofed.base.errors import BadData, Cancelled
from histofed.base.ids import Json
from histofed.recipes.contract import Counts, Progress, ServerRule, TrainTask
from histofed.recipes.mean import MeanRecipe

RECIPE, WORKSHOP = MeanRecipe(), MeanRecipe().workshop()
CONFIG: Mapping[str, Json] = {"dimension": 5, "steps": 8, "tiles": 30, "patients": 4}


@pytest.fixture
def task(tmp_path: Path) -> TrainTask:
    WORKSHOP.initialise(CONFIG, 1, tmp_path / "global.safetensors")
    (tmp_path / "out").mkdir()
    return TrainTask(CONFIG, tmp_path / "global.safetensors", None, None, 2, 7, tmp_path / "out", 1, "cpu")


def _never() -> bool:
    return False


def test_what_it_says_about_itself() -> None:
    demands = RECIPE.demands(CONFIG)
    assert (demands.image_size, demands.classes, demands.steps) == (None, (), 8)
    assert RECIPE.server_rules({**CONFIG, "ema_decay": 0.5}, ("mean.value",)) == (
        ServerRule("ema.value", "mean.value", 0.5),
    )
    with pytest.raises(BadData, match="dimension"):
        RECIPE.parse({"dimension": 0, "steps": 1})


def test_a_task_moves_towards_the_sites_vector(task: TrainTask) -> None:
    seen: list[Progress] = []
    result = WORKSHOP.train(task, seen.append, _never)
    before, after = (weights.read(path)["mean.value"] for path in (task.shared, task.output / "shared.safetensors"))
    goal = np.random.default_rng(7).standard_normal(5).astype(np.float32)
    np.testing.assert_allclose(after - goal, 0.9**8 * (before - goal), rtol=1e-4)
    assert after.dtype == np.float32
    assert result.counts == Counts(30, 4)
    assert [progress.step for progress in seen] == list(range(1, 9))
    assert result.metrics["distance"] == seen[-1].losses["distance"] < seen[0].losses["distance"]


def test_private_state_counts_committed_steps(task: TrainTask, tmp_path: Path) -> None:
    WORKSHOP.train(task, lambda _: None, _never)
    adopted = tmp_path / "private.safetensors"
    (task.output / "private.safetensors").rename(adopted)
    WORKSHOP.train(replace(task, private=adopted), lambda _: None, _never)
    assert weights.read(task.output / "private.safetensors")["mean.steps"].tolist() == [16]


def test_a_stopped_task_goes_on_and_ends_in_the_same_bytes(task: TrainTask) -> None:
    WORKSHOP.train(task, lambda _: None, _never)
    whole = {path.name: path.read_bytes() for path in task.output.iterdir()}
    for path in task.output.iterdir():
        path.unlink()
    answers = iter([False, False, False, True])
    with pytest.raises(Cancelled, match="after 3 of 8 steps"):
        WORKSHOP.train(task, lambda _: None, lambda: next(answers))
    assert not (task.output / "shared.safetensors").exists()
    seen: list[Progress] = []
    WORKSHOP.train(task, seen.append, _never)
    assert seen[0].step == 4
    assert {name: (task.output / name).read_bytes() for name in whole} == whole
    again: list[Progress] = []
    WORKSHOP.train(task, again.append, _never)
    assert again == seen, "until somebody has kept the result"


def test_weights_of_other_work_are_refused(task: TrainTask) -> None:
    weights.save(task.shared, {"mean.value": np.zeros(4, np.float32)})
    with pytest.raises(BadData, match=r"float32\[5\]"):
        WORKSHOP.train(task, lambda _: None, _never)


def test_there_is_nothing_to_draw(task: TrainTask, tmp_path: Path) -> None:
    assert not WORKSHOP.sample_sheet(CONFIG, task.shared, 1, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
