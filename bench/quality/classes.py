"""How much of a class there is to be learned, and how much of it generated tiles show: why the probe decides nothing here.

The difference of two classes is that of their mean features, in deviations of the real training tiles. Two halves of the
training patients say how far it is the classes' and not these patients' own; folds by patient say what a probe makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from bench.quality.judge import Judge, draw
from bench.quality.one import released
from bench.quality.recipes import CLASSES, EDGE, NAMES, settings_of
from histofed.evaluation.probe import probe
from histofed.tiles import cache, folder

FOLDS: Final = 4
SHUFFLES: Final = 5
TILES: Final = 1000
"""Generated, half of each class."""

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def show(data: Path, nets: Path, out: Path) -> None:
    """Print it for the real training tiles, and for every run of the comparison that is in `out`."""
    judge = Judge(data, nets, out)
    tiles = cache.load(folder.scan(judge.training_folder, CLASSES), EDGE, EDGE)
    labels = np.asarray(tiles.labels)
    patients = np.array([tile.patient for tile in tiles.tileset.tiles])
    real = judge.features(np.asarray(tiles.pixels))
    for net, features in real.items():
        right = [_right_by_folds(features, labels, patients, shuffle) for shuffle in range(SHUFFLES)]
        alike = [_alike_by_halves(features, labels, patients, shuffle) for shuffle in range(SHUFFLES)]
        print(f"real tiles, {net}: balanced accuracy, {FOLDS} folds of patients: {_told(right)}")
        print(f"real tiles, {net}: cosine of the difference in two halves of the patients: {_told(alike)}")
    for name, generated, asked in _generated(out):
        for net, features in judge.features(generated).items():
            theirs = _difference(real[net], labels, real[net])
            own = _difference(features, asked, real[net])
            length = np.linalg.norm(own) / np.linalg.norm(theirs)
            print(f"{name}, {net}: cosine to the real difference {_cosine(own, theirs):.2f}, {length:.2f} x as long")


def _generated(out: Path) -> Iterator[tuple[str, npt.NDArray[np.uint8], Labels]]:
    for recipe in NAMES:
        for run in sorted(out.glob(f"{recipe}-*/run")):
            generator = released(settings_of(recipe, {}), run)
            yield run.parent.name, *draw(generator, TILES, np.repeat(np.arange(len(CLASSES)), TILES // len(CLASSES)))


def _difference(features: Features, labels: Labels, real: Features) -> Features:
    """Of the two classes' means, in deviations of the real tiles, (F,)."""
    first, second = (features[labels == k].mean(0) for k in range(2))
    found: Features = (first - second) / (real.std(0) + 1e-6)
    return found


def _right_by_folds(features: Features, labels: Labels, patients: npt.NDArray[np.str_], shuffle: int) -> float:
    """The probe's balanced accuracy on patients that it has not seen, mean over the folds."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=shuffle).split(features, labels, patients)
    return float(np.mean([probe(features[a], labels[a], features[b], labels[b]) for a, b in folds]))


def _alike_by_halves(features: Features, labels: Labels, patients: npt.NDArray[np.str_], shuffle: int) -> float:
    """How far two halves of the patients agree about the difference: a cosine."""
    folds = StratifiedGroupKFold(2, shuffle=True, random_state=shuffle).split(features, labels, patients)
    first, second = (_difference(features[half], labels[half], features) for half, _ in folds)
    return _cosine(first, second)


def _cosine(a: Features, b: Features) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _told(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}, {SHUFFLES} shuffles)"
