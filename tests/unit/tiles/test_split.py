"""A split over hospitals never cuts through a patient."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import AlreadyThere, BadData, CannotWriteState, HeldOutPatients
from histofed.tiles import cache, folder
from histofed.tiles.holdout import hold_out
from histofed.tiles.split import Part, assign, held_out_parts, only, split_by_patient, write_parts
from histofed.tiles.tileset import Tile, TileSet
from tests.support.failing_disk import hide
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
    with pytest.raises(AlreadyThere, match="north is a folder with tiles"):
        split_by_patient(tiles_root.path, CLASSES, SITES, 2, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO])
def test_a_target_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tiles_root: TilesRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    """Another split may lie there, which holds out other patients."""
    split_by_patient(tiles_root.path, CLASSES, SITES, 1, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as disk:
        hide(disk, tmp_path, reason=reason)
        with pytest.raises(CannotWriteState):
            split_by_patient(tiles_root.path, CLASSES, ("east", "centre"), 2, tmp_path)
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


def test_parts_are_marked_and_only_training_can_be_scanned(tiles_root: TilesRoot, tmp_path: Path) -> None:
    tileset = folder.scan(tiles_root.path, CLASSES)
    roles = hold_out(tileset, 0.2, 0.2, 3)
    parts = [Part("TRAIN", "train", only(tileset, roles, "train").tiles), *held_out_parts(tileset, roles)]
    write_parts(tiles_root.path, parts, tmp_path)
    trained = folder.scan(tmp_path, CLASSES)
    assert trained.patients() == {patient for patient, role in roles.items() if role == "train"}
    for name in ("VALIDATION", "TEST"):
        with pytest.raises(BadData, match="must not be trained on"):
            folder.scan(tmp_path / name, CLASSES)
        renamed = tmp_path / f"harmless-{name}"
        (tmp_path / name).rename(renamed)
        with pytest.raises(BadData, match="part of a split"):
            folder.scan(renamed, CLASSES)
    victim = next(path for path in renamed.rglob("*") if path.is_symlink())
    (tmp_path / "TRAIN" / victim.parent.name / victim.name).symlink_to(victim.resolve())
    with pytest.raises(HeldOutPatients, match="tiles of 1 patient whom its split holds out"):
        folder.scan(tmp_path / "TRAIN", CLASSES)


def test_names_that_tell_no_patient_keep_their_table(small_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "source"
    for name in CLASSES:
        (root / name / "deep").mkdir(parents=True)
        for number in range(4):
            (root / name / "deep" / f"{number}.png").symlink_to(next((small_root / name).iterdir()))
    lines = [f"{name}/deep/{number}.png,{name}-{number // 2},clinic" for name in CLASSES for number in range(4)]
    (root / "patients.csv").write_text("file,patient,hospital\n" + "\n".join(lines))
    counts = split_by_patient(root, CLASSES, ("a", "b"), 0, tmp_path / "sites")
    assert counts == {"a": 4, "b": 4}
    for site in counts:
        found = folder.scan(tmp_path / "sites" / site, CLASSES)
        assert {tile.hospital for tile in found.tiles} == {"clinic"}
        assert len(found.patients()) == 2


def test_a_split_inside_its_own_data_is_refused(small_root: Path) -> None:
    with pytest.raises(BadData, match="inside the data"):
        split_by_patient(small_root, CLASSES, ("one",), 0, small_root / "MSIH")
