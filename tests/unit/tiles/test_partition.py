"""Partitions keep patients whole, come near what was asked for, and say what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histofed.base.errors import BadData, UsageError
from histofed.tiles import partition
from histofed.tiles.holdout import hold_out
from histofed.tiles.partition import Homes, achieved
from histofed.tiles.tileset import Tile, TileSet


def tileset(sizes: list[list[int]], classes: int = 2) -> TileSet:
    """Patient `pK-N` of class K with so many tiles; hospitals take turns."""
    tiles = [
        Tile(k, Path(f"{k}/{n}/{i}"), f"p{k}-{n}", f"h{n % 3}")
        for k in range(classes)
        for n, s in enumerate(sizes[k])
        for i in range(s)
    ]
    return TileSet(tuple(f"c{k}" for k in range(classes)), tuple(tiles), {})


def paper() -> TileSet:
    """TRAIN of TCGA-CRC-DX in the small: 42 and 242 patients with about equally many tiles."""
    draw = np.random.default_rng(1)
    return tileset([[int(n) for n in draw.integers(12, 34, 42)], [int(n) for n in draw.integers(2, 6, 242)]])


WHOLE: dict[str, Callable[[TileSet, int], Homes]] = {
    "iid-patient": lambda tiles, seed: partition.iid_patient(tiles, 3, seed),
    "class-majority": lambda tiles, seed: partition.class_majority(tiles, 4, 0.7, seed),
    "dirichlet": lambda tiles, seed: partition.dirichlet(tiles, 3, 0.5, seed),
    "hospital": lambda tiles, seed: partition.hospitals(tiles, 2)[0],
}


@pytest.mark.parametrize("method", WHOLE)
def test_patients_are_whole_and_the_seed_decides(method: str) -> None:
    tiles = paper()
    homes = WHOLE[method](tiles, 1)
    assert len(homes) == len(tiles.tiles)
    assert achieved(tiles, homes, 4).shared_patients == 0
    assert homes == WHOLE[method](tiles, 1)
    if method != "hospital":
        assert homes != WHOLE[method](tiles, 2)


def test_the_papers_split_shares_patients() -> None:
    tiles = paper()
    found = achieved(tiles, partition.iid_tile(tiles, 6, 0), 6)
    counts = [sum(counts) for counts in found.tiles]
    assert max(counts) - min(counts) <= 1
    assert found.shared_patients > 200


def test_equal_shares() -> None:
    tiles = paper()
    found = achieved(tiles, partition.iid_patient(tiles, 10, 3), 10)
    for k in (0, 1):
        share = tiles.count(k) / 10
        assert all(abs(counts[k] - share) <= 0.25 * share for counts in found.tiles)


@pytest.mark.parametrize("ratio", [0.6, 0.7, 0.8, 0.9])
def test_the_papers_majorities_by_patient(ratio: float) -> None:
    tiles = paper()
    found = achieved(tiles, partition.class_majority(tiles, 6, ratio, 0), 6)
    for site, counts in enumerate(found.tiles):
        assert counts.index(max(counts)) == site // 3, "three lean one way, three the other"
        assert found.majority(site) == pytest.approx(ratio, abs=0.02)
        assert min(found.patients[site]) >= 1


def test_five_classes_lean_too() -> None:
    tiles = tileset([[5] * 20 for _ in range(5)], classes=5)
    found = achieved(tiles, partition.class_majority(tiles, 5, 0.6, 0), 5)
    assert [counts.index(max(counts)) for counts in found.tiles] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("sizes", "least"), [([31, 69], 0.69), ([10, 20, 30], 2 / 3), ([8, 23, 23, 23, 23], 0.68)])
def test_the_advised_ratio_is_the_least_that_works(sizes: list[int], least: float) -> None:
    tiles = tileset([[size] * 12 for size in sizes], classes=len(sizes))
    with pytest.raises(BadData, match=rf"give --ratio more than {least:.3f}"):
        partition.class_majority(tiles, len(sizes), least - 0.01, 0)
    assert len(partition.class_majority(tiles, len(sizes), least + 0.01, 0)) == len(tiles.tiles)


def test_alpha_says_how_uneven() -> None:
    tiles = paper()
    spread = []
    for alpha in (0.1, 100.0):
        shares = np.array(achieved(tiles, partition.dirichlet(tiles, 5, alpha, 1), 5).tiles)
        spread.append(float((shares / shares.sum(0)).std()))
    assert spread[0] > 3 * spread[1]


def test_real_hospitals_are_whole() -> None:
    tiles = tileset([[3, 4, 5, 6], [1, 2, 3, 9]])
    homes, groups = partition.hospitals(tiles, None)
    assert sorted(groups) == [("h0",), ("h1",), ("h2",)]
    assert {(tile.hospital, home) for tile, home in zip(tiles.tiles, homes, strict=True)} == {
        (name, place) for place, (name,) in enumerate(groups)
    }
    assert sorted(sum(partition.hospitals(tiles, 2)[1], ())) == ["h0", "h1", "h2"]


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda: partition.iid_patient(tileset([[5], [5, 5]]), 2, 0),
            BadData,
            "class c0 has tiles of 1 patients, too few for 2",
        ),
        (
            lambda: partition.class_majority(tileset([[31] * 10, [69] * 10]), 2, 0.6, 0),
            BadData,
            r"class c0 has 31% of the tiles, .*give --ratio more than 0\.690,",
        ),
        (lambda: partition.class_majority(paper(), 2, 0.5, 0), UsageError, "is no majority"),
        (lambda: partition.class_majority(paper(), 2, 1.0, 0), UsageError, "is no majority"),
        (lambda: partition.class_majority(paper(), 1, 0.7, 0), UsageError, "cannot lean towards 2 classes"),
        (lambda: partition.dirichlet(paper(), 2, 0.0, 0), UsageError, "--alpha 0"),
        (lambda: partition.dirichlet(paper(), 2, float("nan"), 0), UsageError, "--alpha nan"),
        (lambda: partition.hospitals(paper(), 4), BadData, "come from 3 hospitals, too few for 4"),
        (
            lambda: partition.hospitals(TileSet(("a",), (Tile(0, Path("x"), "p"),), {}), 1),
            BadData,
            "hospital of 1 tiles is unknown",
        ),
        (
            lambda: hold_out(tileset([[5, 5], [5, 5, 5]]), 0.1, 0.1, 0),
            BadData,
            "class c0 has 2 patients, too few to hold out",
        ),
        (lambda: hold_out(paper(), 0.5, 0.5, 0), UsageError, "--holdout"),
        (lambda: hold_out(paper(), float("nan"), 0.5, 0), UsageError, "--holdout"),
    ],
)
def test_what_cannot_be_done_is_said(call: Callable[[], object], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        call()


def test_a_patient_of_two_hospitals_cannot_be_split_by_hospital() -> None:
    tiles = (Tile(0, Path("x"), "p", "a"), Tile(0, Path("y"), "p", "b"))
    with pytest.raises(BadData, match="tiles of two hospitals"):
        partition.hospitals(TileSet(("c",), tiles, {}), 2)


def test_shares_are_held_out_of_every_class() -> None:
    tiles = paper()
    roles = hold_out(tiles, 0.1, 0.2, 5)
    assert roles.keys() == tiles.patients()
    for k, counts in ((0, (30, 4, 8)), (1, (170, 24, 48))):
        found = [sum(roles[patient] == role for patient in tiles.patients(k)) for role in ("train", "validation", "test")]
        assert tuple(found) == counts


sizes_of_patients = st.lists(st.integers(1, 30), min_size=4, max_size=15)


@settings(max_examples=40)
@given(sizes_of_patients, sizes_of_patients, st.integers(0, 2**32), st.floats(0.05, 20))
def test_any_patients_are_shared_out_whole(first: list[int], second: list[int], seed: int, alpha: float) -> None:
    tiles = tileset([first, second])
    for homes in (partition.iid_patient(tiles, 3, seed), partition.dirichlet(tiles, 3, alpha, seed)):
        found = achieved(tiles, homes, 3)
        assert found.shared_patients == 0
        assert sum(map(sum, found.tiles)) == len(tiles.tiles)
    everywhere = achieved(tiles, partition.iid_patient(tiles, 3, seed), 3)
    assert min(map(min, everywhere.patients)) >= 1
