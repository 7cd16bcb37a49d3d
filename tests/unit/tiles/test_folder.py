"""Published layouts are read as they are; anything else is counted or refused in words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from histofed.base.errors import BadData
from histofed.tiles import folder
from tests.support.tiles import CLASSES, TilesRoot


def test_the_tiles_of_this_run_are_all_understood(tiles_root: TilesRoot) -> None:
    found = folder.scan(tiles_root.path, CLASSES)
    print(f"{len(found.tiles)} {tiles_root.kind} tiles")
    assert len(found.tiles) == len([*tiles_root.path.glob("*/*.jpg")]) > 0
    assert not found.refused
    assert min(len(found.patients(0)), len(found.patients(1))) >= 2
    assert found == folder.scan(tiles_root.path, CLASSES)


@pytest.mark.parametrize("names", [("MSIH", "nonMSIH"), ("msih", "NonMSIH"), ("MSIMUT", "MSS"), ("MsiMut", "mss")])
def test_class_folders_in_any_published_name_and_case(small_root: Path, names: tuple[str, str]) -> None:
    (small_root / "MSIH").rename(small_root / "0")
    (small_root / "nonMSIH").rename(small_root / "1")
    for index, name in enumerate(names):
        (small_root / str(index)).rename(small_root / name)
    found = folder.scan(small_root, CLASSES)
    assert [(tile.class_index, tile.patient) for tile in found.tiles] == [(0, "TCGA-AA-0000"), (1, "TCGA-AA-0001")]


def test_the_index_is_the_place_in_the_experiments_list(small_root: Path) -> None:
    found = folder.scan(small_root, ("MSS", "MSIMUT"))
    assert [(tile.class_index, tile.patient) for tile in found.tiles] == [(0, "TCGA-AA-0001"), (1, "TCGA-AA-0000")]


def test_classes_of_another_experiment(small_root: Path) -> None:
    shutil.copytree(small_root / "MSIH", small_root / "Mucinous")
    found = folder.scan(small_root, ("Mucinous", "MSIH"))
    assert [found.count(0), found.count(1)] == [1, 1]
    assert found.refused == {folder.OTHER_CLASS: 1}


def test_only_the_training_half_is_read(small_root: Path, tmp_path: Path) -> None:
    halves = tmp_path / "halves"
    for half in ("Train", "TEST"):
        for name in CLASSES:
            shutil.copytree(small_root / name, halves / half / name)
    (halves / "TEST/MSIH/TCGA-AA-0009-01Z-00-DX1.png").write_bytes(b"")
    found = folder.scan(halves, CLASSES)
    assert len(found.tiles) == 2
    assert all(tile.path.is_relative_to(halves / "Train") for tile in found.tiles)


def test_a_test_half_alone_is_refused(small_root: Path, tmp_path: Path) -> None:
    shutil.copytree(small_root / "MSIH", tmp_path / "only/TEST/MSIH")
    with pytest.raises(BadData, match="test patients must not be trained on"):
        folder.scan(tmp_path / "only", CLASSES)


def test_names_without_a_patient_and_folders_are_counted(small_root: Path) -> None:
    (small_root / "MSIH/tile-17.png").write_bytes(b"x")
    (small_root / "MSIH/.DS_Store").write_bytes(b"x")
    (small_root / "MSIH/TCGA-AA-0007-01Z-00-DX1.d").mkdir()
    (small_root / "MSIH/TCGA-AA-0008-01Z-00-DX1.png").symlink_to(small_root / "gone")
    (small_root / "tiles.csv").write_text("a list beside the class folders is no tile")
    found = folder.scan(small_root, CLASSES)
    assert len(found.tiles) == 2
    assert found.refused == {folder.NO_PATIENT: 2, folder.NOT_A_FILE: 1}


@pytest.mark.parametrize(
    ("breakage", "sentence"),
    [
        ("no root", "the data root does not exist"),
        ("a file", "the data root is not a folder"),
        ("no class folder", "no folder for class nonMSIH"),
        ("empty class", "class nonMSIH has no usable tile"),
        ("no patient", "class nonMSIH has no usable tile .*1 file refused: no patient id in the name"),
    ],
)
def test_what_cannot_be_used_is_refused_without_naming_anything(small_root: Path, breakage: str, sentence: str) -> None:
    root, tile = small_root, next((small_root / "nonMSIH").iterdir())
    match breakage:
        case "no root":
            root = small_root / "elsewhere"
        case "a file":
            root = tile
        case "no class folder":
            shutil.rmtree(tile.parent)
        case "empty class":
            tile.unlink()
        case "no patient":
            tile.rename(tile.with_name("private-name.png"))
    with pytest.raises(BadData, match=sentence) as caught:
        folder.scan(root, CLASSES)
    for secret in (str(small_root), "TCGA", "private-name", "elsewhere"):
        assert secret not in str(caught.value)


def test_a_class_named_twice_is_refused(small_root: Path) -> None:
    with pytest.raises(BadData, match="name one class twice"):
        folder.scan(small_root, ("MSIH", "msimut"))
