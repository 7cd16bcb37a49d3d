"""Published layouts are read as they are; anything else is counted or refused in words."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from histofed.base.errors import BadData, HeldOutPatients, TooFewPatients, TryLater
from histofed.tiles import folder
from histofed.tiles.manifest import MANIFEST
from histofed.tiles.partition import iid_patient
from histofed.tiles.patients import TABLE
from histofed.tiles.tileset import check_patients
from tests.support.bad_pictures import UNREADABLE
from tests.support.tiles import CLASSES, TilesRoot


def test_what_a_class_lacks_is_said_for_this_class(small_root: Path) -> None:
    with pytest.raises(
        BadData, match=r"no folder for class tumour, MSS; it needs one named tumour and one named MSS or nonMSIH"
    ) as caught:
        folder.scan(small_root / "MSIH", ("tumour", "MSS"))
    assert "MSIMUT" not in str(caught.value), "nobody asked for that class"


def test_what_is_refused_is_named_for_the_hospital_alone(small_root: Path) -> None:
    (small_root / "MSIH/private-name.png").write_bytes(b"x")
    (small_root / "Mucinous").mkdir()
    (small_root / "Mucinous/tile.png").write_bytes(b"x")
    found = folder.look(small_root, ("MSIH", "LYM"))
    assert [(file.path.relative_to(small_root).as_posix(), file.reason) for file in found.unusable] == [
        ("MSIH/private-name.png", folder.NO_PATIENT),
        ("Mucinous/tile.png", folder.OTHER_CLASS),
        ("nonMSIH/TCGA-AA-0001-01Z-00-DX1.png", folder.OTHER_CLASS),
    ]
    assert found.missing == ("LYM",)
    assert "private-name" not in repr(found.tileset)
    assert folder.outermost(small_root) == ("MSIH", "Mucinous", "nonMSIH")


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
            (halves / half / name).mkdir(parents=True)
    for index, name in enumerate(CLASSES):
        shutil.copytree(small_root / name, halves / "Train" / name, dirs_exist_ok=True)
        (halves / f"TEST/{name}/TCGA-AA-000{8 + index}-01Z-00-DX1.png").write_bytes(b"")
    found = folder.scan(halves, CLASSES)
    assert len(found.tiles) == 2
    assert all(tile.path.is_relative_to(halves / "Train") for tile in found.tiles)


@pytest.mark.parametrize("place", ["TEST/MSIH", "val/deep/nonMSIH"])
def test_a_patient_on_both_sides_is_refused(small_root: Path, tmp_path: Path, place: str) -> None:
    tree = _move(small_root, "TRAIN")
    (tree / place).mkdir(parents=True)
    shutil.copy(next((tree / "TRAIN/MSIH").iterdir()), tree / place / "TCGA-AA-0000-01Z-00-DX2.png")
    with pytest.raises(
        HeldOutPatients, match="1 patient is in the training part and in a test or validation part"
    ) as caught:
        folder.scan(tree, CLASSES)
    assert "TCGA" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"), [("P-17", "p-17"), ("M\N{LATIN SMALL LETTER U WITH DIAERESIS}-1", "Mu\N{COMBINING DIAERESIS}-1")]
)
def test_a_patient_of_two_spellings_is_on_both_sides_too(tmp_path: Path, first: str, second: str) -> None:
    for half, spelling in (("TRAIN", first), ("TEST", second)):
        for name in CLASSES:
            (tmp_path / half / name).mkdir(parents=True)
            (tmp_path / half / name / "1.png").write_bytes(b"")
        (tmp_path / half / TABLE).write_text(f"file,patient\nMSIH/1.png,{spelling}\nnonMSIH/1.png,{half}\n")
    with pytest.raises(HeldOutPatients, match="1 patient is in the training part and in a test or validation part"):
        folder.scan(tmp_path, CLASSES)


def test_a_patient_of_two_spellings_is_one(tmp_path: Path) -> None:
    """For a site's minimum and for every split: the table's first text, in the order of the folders, is the name."""
    rows = ["file,patient"]
    for name, people in zip(CLASSES, (("p-1", "P-1"), ("q-1", "Q-1")), strict=True):
        (tmp_path / name).mkdir()
        for number, patient in enumerate(people * 2):
            (tmp_path / name / f"{number}.png").write_bytes(b"")
            rows.append(f"{name}/{number}.png,{patient}")
    (tmp_path / TABLE).write_text("\n".join(rows))
    found = folder.scan(tmp_path, CLASSES)
    assert found.patients() == {"p-1", "q-1"}
    with pytest.raises(TooFewPatients, match="class MSIH has tiles of 1 patient; this site requires at least 2"):
        check_patients(found, 2)
    with pytest.raises(BadData, match="class MSIH has tiles of 1 patients, too few for 2 sites"):
        iid_patient(found, 2, 0)
    assert found.patients() == folder.list_all(tmp_path, CLASSES).patients()


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


def _move(root: Path, *parts: str) -> Path:
    """The small root's class folders below a few more folders; returns the new root."""
    target = root / "tree"
    inner = target.joinpath(*parts)
    inner.mkdir(parents=True)
    for name in CLASSES:
        (root / name).rename(inner / name)
    return target


def test_a_tree_of_any_depth(small_root: Path) -> None:
    tree = _move(small_root, "north", "2024")
    deep = tree / "north/2024/MSIH/slide-7/level-0"
    deep.mkdir(parents=True)
    shutil.copy(next((tree / "north/2024/MSIH").glob("*.png")), deep / "TCGA-BB-0009-01Z-00-DX1.png")
    (tree / "north/readme.txt").write_text("no tile")
    found = folder.scan(tree, CLASSES)
    assert [(tile.class_index, tile.patient, tile.hospital) for tile in found.tiles] == [
        (0, "TCGA-AA-0000", "AA"),
        (0, "TCGA-BB-0009", "BB"),
        (1, "TCGA-AA-0001", "AA"),
    ]
    assert found.refused == {}


def test_a_tile_in_the_folders_of_two_classes_is_refused(small_root: Path) -> None:
    shutil.copytree(small_root / "nonMSIH", small_root / "MSIH/nonMSIH")
    shutil.copytree(small_root / "MSIH", small_root / "MSIH/msimut", ignore=lambda *_: ["nonMSIH"])
    found = folder.scan(small_root, CLASSES)
    assert [found.count(0), found.count(1)] == [2, 1]
    assert found.refused == {folder.TWO_CLASSES: 1}


def test_a_link_in_a_circle_is_refused(small_root: Path) -> None:
    (small_root / "MSIH/again").symlink_to(small_root)
    with pytest.raises(BadData, match="leads back to a folder above it") as caught:
        folder.scan(small_root, CLASSES)
    assert str(small_root) not in str(caught.value)
    assert "again" not in str(caught.value), "the sentence may leave the site"
    assert isinstance(caught.value.__cause__, folder.Circle)
    assert str(caught.value.__cause__) == ""


def test_a_link_to_itself_is_no_file_and_no_folder(small_root: Path) -> None:
    for place in ("loop", "MSIH/TCGA-AA-0009-01Z-00-DX1.png", "nonMSIH/loop"):
        (small_root / place).symlink_to(Path(place).name)
    found = folder.scan(small_root, CLASSES)
    assert len(found.tiles) == 2
    assert found.refused == {folder.NOT_A_FILE: 2}
    assert folder.outermost(small_root) == CLASSES


@pytest.mark.parametrize("name", [MANIFEST, TABLE])
def test_what_a_hanging_disk_keeps_back_is_not_taken_for_damaged(small_root: Path, name: str) -> None:
    (small_root / "MSIH" / name).symlink_to(UNREADABLE)
    with pytest.raises(TryLater, match="the disk of the tiles cannot be read: Input/output error"):
        folder.scan(small_root, CLASSES)


def test_a_folder_that_a_hanging_disk_keeps_back_is_told_without_its_name(
    small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def stale(path: Path) -> object:
        if path.name == "nonMSIH":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(TryLater, match="the disk of the tiles cannot be read") as caught:
        folder.scan(small_root, CLASSES)
    assert "nonMSIH" not in str(caught.value)


def test_other_names_need_a_table(small_root: Path) -> None:
    for number in range(3):
        shutil.copy(next((small_root / "MSIH").glob("TCGA*")), small_root / f"MSIH/tile {number}.png")
    (small_root / "patients.csv").write_text("file,patient,hospital\nMSIH/tile 0.png,P-1,north\nMSIH/tile 1.png,P-1,north\n")
    found = folder.scan(small_root, CLASSES)
    assert [(tile.patient, tile.hospital) for tile in found.tiles[1:3]] == [("P-1", "north")] * 2
    assert found.refused == {folder.NO_PATIENT: 1}


@pytest.mark.parametrize("name", ["TEST", "test", "Validation", "val", "holdout"])
def test_held_out_folders_are_found_at_any_depth(
    small_root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = _move(small_root, "study", name)
    with pytest.raises(BadData, match="test patients must not be trained on"):
        folder.scan(tree, CLASSES)
    with pytest.raises(BadData, match="a test or validation folder"):
        folder.scan(tree / "study" / name, CLASSES)
    (tmp_path / "tiles").symlink_to(tree / "study" / name)
    monkeypatch.chdir(tree / "study" / name)
    for other_name in (tmp_path / "tiles", Path(), tree / "study" / name / "MSIH" / ".."):
        with pytest.raises(BadData, match="a test or validation folder"):
            folder.scan(other_name, CLASSES)
    assert len(folder.list_all(tree, CLASSES).tiles) == 2, "to look at them is allowed"
    (tree / "study" / name).rename(tree / "study/train")
    (tree / "study" / name / "MSIH").mkdir(parents=True)
    found = folder.scan(tree, CLASSES)
    assert all("train" in tile.path.parts for tile in found.tiles)
    assert len(found.tiles) == 2


def test_classes_are_discovered(small_root: Path, tmp_path: Path) -> None:
    assert folder.discover(small_root) == CLASSES
    shutil.rmtree(small_root / "nonMSIH")
    assert folder.discover(small_root) == CLASSES, "one of the two is missing, and that is to be told"
    other = tmp_path / "other"
    for name in ("b", "a", ".git"):
        (other / "Train" / name).mkdir(parents=True)
    assert folder.discover(other) == ("a", "b")
    with pytest.raises(BadData, match="name the classes"):
        folder.discover(other / "Train/a")


def test_one_class_one_patient_one_tile(small_root: Path, tmp_path: Path) -> None:
    """What a first attempt with too little data is told."""
    with pytest.raises(
        TooFewPatients, match=r"class nonMSIH has tiles of 1 patient; this site requires at least 2|class MSIH"
    ):
        check_patients(folder.scan(small_root, CLASSES), 2)
    shutil.rmtree(small_root / "nonMSIH")
    with pytest.raises(BadData, match="no folder for class nonMSIH"):
        folder.scan(small_root, CLASSES)
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    shutil.copy(next((small_root / "MSIH").iterdir()), lonely)
    with pytest.raises(BadData, match="no folder for class MSIH, nonMSIH"):
        folder.scan(lonely, CLASSES)
