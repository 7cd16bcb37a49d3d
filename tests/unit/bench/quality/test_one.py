"""What a run of the quality bench cost is counted once, wherever a process that advances it dies."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bench.quality import one
from histofed.base.errors import AlreadyThere
from histofed.tiles.draw import draw_tiles


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
