"""Folds and halves are of patients, whichever tiles were refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench.quality import classes
from bench.quality.recipes import CLASSES
from histofed.tiles import folder
from histofed.tiles.draw import draw_tiles


class _Judge:
    """Features that tell the class."""

    def __init__(self, data: Path, *_: Path) -> None:
        self.training_folder = data

    def features(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        return {"means": np.asarray(pixels).mean((2, 3)).astype(np.float32)}


def test_a_refused_tile_shifts_no_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_tiles(tmp_path / "data", patients_per_class=4, tiles_per_patient=3, size=64)
    first = folder.scan(tmp_path / "data", CLASSES).tiles[0]
    first.path.write_bytes(b"no picture")
    told: list[list[str]] = []

    def right(features: object, labels: object, patients: npt.NDArray[np.str_], shuffle: int) -> float:
        told.append(patients.tolist())
        return 1.0

    monkeypatch.setattr(classes, "Judge", _Judge)
    monkeypatch.setattr(classes, "_right_by_folds", right)
    monkeypatch.setattr(classes, "_alike_by_halves", right)
    classes.show(tmp_path / "data", tmp_path, tmp_path / "out")
    usable = [tile.patient for tile in folder.scan(tmp_path / "data", CLASSES).tiles if tile.path != first.path]
    assert told
    assert all(patients == usable for patients in told)
