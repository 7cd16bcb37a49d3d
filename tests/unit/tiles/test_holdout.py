"""Validation and test have patients of every class, and share none with training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import BadData
from histofed.tiles.holdout import hold_out
from histofed.tiles.manifest import ROLES, Role
from histofed.tiles.tileset import Tile, TileSet


def tiles_of(*classes: Collection[int]) -> TileSet:
    """A tile of each class for each of its patients."""
    tiles = [Tile(k, Path(f"{k}/{who}"), f"P{who:03}") for k, patients in enumerate(classes) for who in sorted(patients)]
    return TileSet(tuple("ABCDE"[: len(classes)]), tuple(tiles), {})


def parts(tileset: TileSet, roles: Mapping[str, Role]) -> Sequence[Counter[Role]]:
    """Of each class, how many patients are in which part."""
    return [Counter(roles[who] for who in tileset.patients(k)) for k in range(len(tileset.classes))]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_patients_with_tiles_of_every_class_are_counted_once(classes: int) -> None:
    tileset = tiles_of(*[range(20)] * classes)
    found = parts(tileset, hold_out(tileset, 0.1, 0.2, 1))
    assert found == [Counter(train=14, test=4, validation=2)] * classes


def test_a_rare_class_of_the_same_patients_is_in_every_part() -> None:
    tileset = tiles_of(range(40), range(3))
    for seed in range(20):
        common, rare = parts(tileset, hold_out(tileset, 0.1, 0.2, seed))
        assert rare == Counter(ROLES)
        assert common == Counter(train=28, test=8, validation=4)


def test_a_class_that_other_classes_leave_nobody_for_is_refused_with_what_is_true() -> None:
    """Where each patient of a class is also of another, the seed decides whether it gets one in each part."""
    with pytest.raises(BadData, match="class A has 2 patients, too few"):
        hold_out(tiles_of({0, 1}, {1, 2}, {0, 2}), 0.3, 0.3, 0)
    tileset = tiles_of({0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {0, 3, 6})
    ends = set()
    for seed in range(40):
        try:
            found = parts(tileset, hold_out(tileset, 0.3, 0.3, seed))
            assert all(found[k][role] for k in range(4) for role in ROLES)
            ends.add("held out")
        except BadData as error:
            assert "tiles of other classes too" in str(error)
            assert "--seed" in str(error)
            ends.add("refused")
    assert ends == {"held out", "refused"}


shares = st.sampled_from([(0.1, 0.2), (0.25, 0.0), (0.0, 0.3), (0.3, 0.3)])
patients = st.sets(st.integers(0, 60), min_size=1, max_size=40)


@given(st.lists(patients, min_size=1, max_size=5), shares, st.integers(0, 2**63 - 1))
def test_every_class_gives_about_its_share(groups: list[set[int]], wanted: tuple[float, float], seed: int) -> None:
    """However patients belong to classes; a class that shares none gives exactly its share."""
    tileset = tiles_of(*groups)
    asked: dict[Role, float] = {"validation": wanted[0], "test": wanted[1]}
    try:
        roles = hold_out(tileset, *wanted, seed)
    except BadData as error:
        assert "too few" in str(error)
        return
    assert roles.keys() == tileset.patients()
    for k, found in enumerate(parts(tileset, roles)):
        others = set[int]().union(*(group for other, group in enumerate(groups) if other != k))
        assert found["train"]
        for role, share in asked.items():
            least = max(1, round(share * len(groups[k]))) if share else 0
            assert found[role] >= min(least, 1)
            if not groups[k] & others and least:
                assert abs(found[role] - share * len(groups[k])) <= 1


@given(patients, st.integers(0, 99))
def test_patients_of_one_class_alone_are_held_out_by_share_or_too_few(group: set[int], seed: int) -> None:
    tileset = tiles_of(group)
    held = max(1, round(0.1 * len(group))), max(1, round(0.2 * len(group)))
    if len(group) < 3:
        with pytest.raises(BadData, match=f"class A has {len(group)} patient"):
            hold_out(tileset, 0.1, 0.2, seed)
        return
    (found,) = parts(tileset, hold_out(tileset, 0.1, 0.2, seed))
    assert (found["validation"], found["test"]) == held
