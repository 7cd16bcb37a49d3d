"""A split over hospitals never cuts through a patient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import AlreadyThere, BadData
from histofed.tiles import cache, folder
from histofed.tiles.split import assign, split_by_patient
from histofed.tiles.tileset import Tile, TileSet
from tests.support.tiles import CLASSES, TilesRoot

SITES = ("north", "south", "west")


def test_a_real_folder_is_split_by_patient(tiles_root: TilesRoot, tmp_path: Path) -> None:
    counts = split_by_patient(tiles_root.path, CLASSES, SITES, 1, tmp_path)
    parts = {site: folder.scan(tmp_path / site, CLASSES) for site in SITES}
    whole = folder.scan(tiles_root.path, CLASSES)
    assert counts == {site: len(part.tiles) for site, part in parts.items()}
    assert sum(counts.values()) == len(whole.tiles)
    patients = [part.patients() for part in parts.values()]
    assert sum(map(len, patients)) == len(frozenset.union(*patients)) == len(whole.patients())
    assert cache.load(parts["north"], 32).tileset == parts["north"], "links lead to tiles"


def test_the_seed_decides(tiles_root: TilesRoot) -> None:
    tileset = folder.scan(tiles_root.path, CLASSES)
    assert assign(tileset, SITES, 1) == assign(tileset, SITES, 1)
    assert len({tuple(sorted(assign(tileset, SITES, seed).items())) for seed in range(5)}) > 1


def test_too_few_patients_for_the_hospitals(small_root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="class MSIH has tiles of 1 patients, too few for 2 hospitals"):
        split_by_patient(small_root, CLASSES, ("north", "south"), 1, tmp_path / "sites")
    assert not (tmp_path / "sites").exists()


def test_a_site_that_is_there_is_not_touched(tiles_root: TilesRoot, tmp_path: Path) -> None:
    split_by_patient(tiles_root.path, CLASSES, SITES, 1, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AlreadyThere, match="site north"):
        split_by_patient(tiles_root.path, CLASSES, SITES, 2, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


tiles_of_patients = st.dictionaries(st.integers(0, 30), st.integers(1, 9), min_size=3, max_size=12)


@given(tiles_of_patients, tiles_of_patients, st.integers(0, 2**63 - 1))
def test_every_hospital_gets_its_share(first: Mapping[int, int], second: Mapping[int, int], seed: int) -> None:
    """Patients of the two classes may overlap; they still have one home."""
    tiles = [
        Tile(index, Path(f"{index}-{patient}-{n}"), f"patient-{patient}")
        for index, group in enumerate((first, second))
        for patient, count in group.items()
        for n in range(count)
    ]
    tileset = TileSet(CLASSES, tuple(tiles), {})
    home = assign(tileset, SITES, seed)
    assert home.keys() == tileset.patients()
    of_first = [sum(home[f"patient-{patient}"] == site for patient in first) for site in SITES]
    assert max(of_first) - min(of_first) <= 1
    if not first.keys() & second.keys():
        of_second = [sum(home[f"patient-{patient}"] == site for patient in second) for site in SITES]
        assert max(of_second) - min(of_second) <= 1
