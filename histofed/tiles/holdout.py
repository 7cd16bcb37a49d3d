"""Patients set aside before training: validation and test, class by class. Pure; `split.py` writes the folders."""

from __future__ import annotations

import random
from collections.abc import Mapping

from histofed.base.errors import BadData, UsageError
from histofed.tiles.manifest import Role
from histofed.tiles.tileset import TileSet


def hold_out(tileset: TileSet, validation: float, test: float, seed: int) -> Mapping[str, Role]:
    """Patient → part. Each class gives about these shares of its patients, at least one where a share is above 0.

    Raises `UsageError` for shares that leave nothing to train on, `BadData` when a class has too few patients.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and 0 < validation + test < 1):
        raise UsageError(
            "--holdout takes the shares of validation and test, for example 0.1,0.2, with a sum between 0 and 1"
        )
    roles: dict[str, Role] = {}
    for k, name in enumerate(tileset.classes):
        # somebody with tiles of two classes stays where the first class put them
        mine = sorted(tileset.patients(k) - roles.keys())
        random.Random(f"{seed}/{k}").shuffle(mine)
        there = len(tileset.patients(k))
        counts = {"validation": _share(validation, there), "test": _share(test, there)}
        if sum(counts.values()) >= len(mine):
            raise BadData(
                f"class {name} has {there} patients, too few to hold out validation and test and train on the others"
            )
        for place, patient in enumerate(mine):
            held = place < counts["validation"], place < sum(counts.values())
            roles[patient] = "validation" if held[0] else "test" if held[1] else "train"
    return roles


def _share(share: float, patients: int) -> int:
    return max(1, round(share * patients)) if share > 0 else 0
