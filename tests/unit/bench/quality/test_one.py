"""What a run of the quality bench cost is counted once, wherever a process that advances it dies."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.quality import one
from histofed.base.errors import AlreadyThere
from histofed.base.ids import Json
from histofed.tiles.draw import draw_tiles
from histofed.training.checkpoint import Checkpoint, CheckpointStore


class Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


class _Judge:
    """Judges in no time, or dies of it."""

    dies = False

    def __init__(self, data: Path, *_: object) -> None:
        self.training_folder = data

    def of(self, *_: object) -> dict[str, float]:
        if self.dies:
            raise Killed
        return {"distance": 1.0}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(one, "Judge", _Judge)
    monkeypatch.setattr(one, "COLUMNS", 2)
    draw_tiles(tmp_path / "data", patients_per_class=4, tiles_per_patient=2, size=64)
    return argparse.Namespace(
        data=tmp_path / "data",
        nets=tmp_path,
        out=tmp_path / "out",
        name="one",
        recipe="default",
        seed=1,
        until=0.005,
        values=["batch=4"],
    )


def test_a_run_that_dies_while_it_is_judged_has_spent_its_minutes(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(_Judge, "dies", True)
        one.advance(options)
    spent: dict[str, Any] = json.loads((options.out / "one" / "run" / "spent.json").read_text())
    one.advance(options)
    (row,) = json.loads((options.out / "one" / "curve.json").read_text())
    assert row["minutes"] >= spent["minutes"] >= options.until
    assert row["steps"] == spent["steps"], "it was at the mark already"


def test_a_checkpoint_whose_minutes_nobody_knows_is_not_gone_on_from(options: argparse.Namespace) -> None:
    one.advance(options)
    (options.out / "one" / "run" / "spent.json").unlink()
    options.until *= 2
    one.advance(options)  # what an older bench left says it in its curve
    (options.out / "one" / "run" / "spent.json").unlink()
    (options.out / "one" / "curve.json").write_text("[]")
    with pytest.raises(AlreadyThere, match=r"nobody wrote down what its [0-9]+ steps cost: remove the folder"):
        one.advance(options)


@pytest.mark.parametrize(("behind", "known"), [(0, True), (100, True), (101, False)])
def test_an_older_benchs_row_stops_at_the_last_step_that_was_told(tmp_path: Path, behind: int, known: bool) -> None:
    CheckpointStore(tmp_path, "").save(Checkpoint(250, {}, {"weight": np.zeros(1, np.float32)}))
    curve: list[dict[str, Json]] = [{"steps": 20, "minutes": 1.0}, {"steps": 250 - behind, "minutes": 2.0}]
    with contextlib.nullcontext() if known else pytest.raises(AlreadyThere, match="nobody wrote down"):
        assert one.minutes_spent(tmp_path, curve) == 2.0


def test_where_minutes_are_written_down_no_other_steps_are_taken_for_them(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, "").save(Checkpoint(250, {}, {"weight": np.zeros(1, np.float32)}))
    (tmp_path / "spent.json").write_text(json.dumps({"steps": 249, "minutes": 2.0}))
    with pytest.raises(AlreadyThere, match="nobody wrote down"):
        one.minutes_spent(tmp_path, [{"steps": 249, "minutes": 2.0}])
