"""Patients set aside before training: validation and test, class by class. Pure; `split.py` writes the folders."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from histofed.base.errors import BadData, UsageError
from histofed.tiles.manifest import Role
from histofed.tiles.tileset import TileSet


def hold_out(tileset: TileSet, validation: float, test: float, seed: int) -> Mapping[str, Role]:
    """Patient → part. Each class gives about these shares of its patients, at least one where a share is above 0.

    Raises `UsageError` for shares that leave nothing to train on, `BadData` when a class has too few patients, or too few
    that other classes have not placed already.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and 0 < validation + test < 1):
        raise UsageError(
            "--holdout takes the shares of validation and test, for example 0.1,0.2, with a sum between 0 and 1"
        )
    shares: dict[Role, float] = {"validation": validation, "test": test}
    roles: dict[str, Role] = {}
    # the rarest class first: a common one, of which its patients are a part, can make up for where they went
    for k in sorted(range(len(tileset.classes)), key=lambda k: len(tileset.patients(k))):
        there = tileset.patients(k)
        # somebody with tiles of two classes stays where the first of them put them
        mine = sorted(there - roles.keys())
        random.Random(f"{seed}/{k}").shuffle(mine)
        placed = Counter(roles[patient] for patient in there & roles.keys())
        counts = _counts(len(mine), placed, {role: _share(share, len(there)) for role, share in shares.items()})
        if counts is None:
            raise BadData(_too_few(tileset.classes[k], len(there), placed.total()))
        roles |= zip(mine, (role for role, count in counts.items() for _ in range(count)), strict=True)
    return roles


def _counts(free: int, placed: Mapping[Role, int], wanted: Mapping[Role, int]) -> Mapping[Role, int] | None:
    """How many of a class's free patients go to which part, beside those that are placed; None where a part stays empty."""
    least = {role: int(count > 0 and not placed[role]) for role, count in {**wanted, "train": 1}.items()}
    spare = free - sum(least.values())
    if spare < 0:
        return None
    counts: dict[Role, int] = {}
    for role, count in wanted.items():
        more = min(spare, max(0, count - placed[role] - least[role]))
        counts[role] = least[role] + more
        spare -= more
    return {**counts, "train": least["train"] + spare}


def _share(share: float, patients: int) -> int:
    return max(1, round(share * patients)) if share > 0 else 0


def _too_few(name: str, patients: int, placed: int) -> str:
    sentence = f"class {name} has {patients} patients, too few to hold out validation and test and train on the others"
    if not placed:
        return sentence
    return f"{sentence}, as {placed} of them have tiles of other classes too and are placed with those; try another --seed"
