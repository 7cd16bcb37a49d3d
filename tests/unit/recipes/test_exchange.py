"""The recipe that only moves weights: exact, bounded, and quick to say what is wrong with its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histofed import weights
from histofed.base.errors import BadData, Cancelled
from histofed.recipes.contract import Counts, TrainTask
from histofed.recipes.exchange import STEP, ExchangeRecipe

RECIPE, WORKSHOP = ExchangeRecipe(), ExchangeRecipe().workshop()
CONFIG = {"weights": 70_000, "tensors": 2}


@pytest.fixture
def task(tmp_path: Path) -> TrainTask:
    WORKSHOP.initialise(CONFIG, 1, tmp_path / "global.safetensors")
    (tmp_path / "out").mkdir()
    return TrainTask(CONFIG, tmp_path / "global.safetensors", None, None, 2, 7, tmp_path / "out", 1, "cpu")


def _never() -> bool:
    return False


def test_the_weights_asked_for_in_the_tensors_asked_for(task: TrainTask) -> None:
    first = weights.read(task.shared)
    assert [(name, array.shape, array.dtype) for name, array in first.items()] == [
        ("exchange.00000", (35_000,), np.dtype("<f4")),
        ("exchange.00001", (35_000,), np.dtype("<f4")),
    ]
    assert len(np.unique(first["exchange.00000"])) > 1000, "a compressor gains little"


def test_a_task_adds_the_step_exactly_however_often(task: TrainTask) -> None:
    before = weights.read(task.shared)
    result = WORKSHOP.train(task, lambda _: None, _never)
    after = weights.read(task.output / "shared.safetensors")
    assert all((after[name] == before[name] + np.float32(STEP)).all() for name in before)
    assert (result.counts, result.steps) == (Counts(1, 1), 1)


def test_private_state_counts_the_rounds(task: TrainTask, tmp_path: Path) -> None:
    WORKSHOP.train(task, lambda _: None, _never)
    assert [value.tolist() for value in weights.read(task.output / "private.safetensors").values()] == [[1.0]]


def test_a_stopped_task_says_so(task: TrainTask) -> None:
    slow = TrainTask({**CONFIG, "delay_s": 600}, task.shared, None, None, 2, 7, task.output, 1, "cpu")
    with pytest.raises(Cancelled, match="begins again"):
        WORKSHOP.train(slow, lambda _: None, lambda: True)


def test_weights_of_another_form_are_refused(task: TrainTask) -> None:
    weights.save(task.shared, {"exchange.00000": np.zeros(4, np.float32)})
    with pytest.raises(BadData, match="another form"):
        WORKSHOP.train(task, lambda _: None, _never)


@pytest.mark.parametrize("table", [{}, {"weights": 0}, {"weights": 5, "tensors": 6}, {"weights": 5, "extra": 1}])
def test_a_table_that_cannot_be_is_refused(table: dict[str, int]) -> None:
    with pytest.raises(BadData):
        RECIPE.demands(table)


def test_what_it_says_about_itself() -> None:
    demands = RECIPE.demands(CONFIG)
    assert (demands.models, demands.image_size, demands.classes, demands.steps) == (("exchange",), None, (), 1)
    assert RECIPE.server_rules(CONFIG, ("exchange.00000",)) == ()
