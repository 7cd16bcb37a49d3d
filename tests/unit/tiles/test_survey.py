"""A survey finds what was hidden in the data, and its page is one file."""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histofed.tiles import folder
from histofed.tiles.page import STAYS, render
from histofed.tiles.survey import survey
from tests.support.bad_pictures import UNREADABLE
from tests.support.tiles import CLASSES, TilesRoot


@pytest.fixture
def messy(tiles_root: TilesRoot, tmp_path: Path) -> Path:
    """Six tiles of each class, and one trouble of each kind."""
    for name, target in zip(("MSIH", "nonMSIH"), ("MSIH", "nonMSIH"), strict=True):
        source = next(p for p in tiles_root.path.iterdir() if p.name in (name, {"MSIH": "MSIMUT", "nonMSIH": "MSS"}[name]))
        (tmp_path / target).mkdir()
        for tile in sorted(source.iterdir())[::3][:6]:
            shutil.copy(tile, tmp_path / target)
    first, second = sorted((tmp_path / "MSIH").iterdir())[:2]
    shutil.copy(first, tmp_path / "nonMSIH/blk-COPY-TCGA-ZZ-0001-01Z-00-DX1.jpg")
    with Image.open(second) as image:
        image.save(tmp_path / "MSIH/blk-AGAIN-TCGA-ZZ-0002-01Z-00-DX1.jpg", quality=40)
    Image.new("RGB", (64, 64), (250, 250, 250)).save(tmp_path / "MSIH/blk-GLASS-TCGA-ZZ-0003-01Z-00-DX1.png")
    (tmp_path / "MSIH/blk-BROKEN-TCGA-ZZ-0004-01Z-00-DX1.jpg").write_bytes(first.read_bytes()[:700])
    (tmp_path / "MSIH/<script>alert(1)<.png").write_bytes(b"")
    return tmp_path


def test_everything_is_found(messy: Path) -> None:
    found = survey(messy, CLASSES)
    assert len(found.seen) == 15
    assert [[tile.patient for tile in group][-1] for group in found.exact] == ["TCGA-ZZ-0001"]
    assert any("TCGA-ZZ-0002" in {tile.patient for tile in group} for group in found.near)
    assert len(found.crossing()) == 2
    assert "TCGA-ZZ-0003" in {seen.tile.patient for seen in found.mostly_glass()}
    assert "TCGA-ZZ-0003" in {seen.tile.patient for seen in found.blurred()}
    assert sum(found.refused.values()) == 2
    assert found.problems() == ()
    assert "TCGA" not in " ".join((*found.problems(), *found.warnings()))
    focus = found.quantities()["focus"]
    assert list(focus) == sorted(focus)


def test_a_picture_in_two_classes_of_one_patient_is_a_contradiction(messy: Path) -> None:
    """Not the copies across patients that are there already."""
    assert survey(messy, CLASSES).contradicting() == ()
    twice = sorted(path for path in (messy / "MSIH").glob("*TCGA-*") if "TCGA-ZZ" not in path.name)[2]
    shutil.copy(twice, messy / "nonMSIH")
    found = survey(messy, CLASSES)
    (group,) = found.contradicting()
    places = {f"{folder}/{twice.name}" for folder in CLASSES}
    assert places <= {found.place(tile.path) for tile in group}
    assert any("two classes of one patient" in line for line in found.warnings())
    page = render(found, "a hospital")
    assert all(place in page for place in places)


def test_files_that_cannot_be_used_are_counted_together_and_named(small_root: Path) -> None:
    whole = next((small_root / "MSIH").iterdir()).read_bytes()
    (small_root / "MSIH/blk-CUT-TCGA-AA-0000-01Z-00-DX1.png").write_bytes(whole[:80])
    (small_root / "MSIH/blk-EMPTY-TCGA-AA-0000-01Z-00-DX1.png").write_bytes(b"")
    (small_root / "MSIH" / os.fsdecode(b"bell\x07 and latin-1 \xe9.png")).write_bytes(b"")
    found = survey(small_root, CLASSES)
    assert found.warnings()[0].startswith("3 files that cannot be used: 1 ")
    assert [(found.place(file.path), file.reason) for file in found.unusable] == [
        ("MSIH/bell\\x07 and latin-1 \\xe9.png", folder.NO_PATIENT),
        ("MSIH/blk-CUT-TCGA-AA-0000-01Z-00-DX1.png", "truncated or damaged"),
        ("MSIH/blk-EMPTY-TCGA-AA-0000-01Z-00-DX1.png", "not a JPEG, PNG or TIFF image"),
    ]
    page = render(found, "a hospital")
    for file in found.unusable:
        assert found.place(file.path) in page
    page.encode()


def test_a_file_that_the_disk_does_not_give_is_named_and_stops_a_training(small_root: Path) -> None:
    (small_root / "MSIH/TCGA-AA-0005-01Z-00-DX1.png").symlink_to(UNREADABLE)
    found = survey(small_root, CLASSES)
    words = "the disk of the tiles cannot be read: Input/output error; repair it, or mount it again"
    assert [(file.path.name, file.reason) for file in found.unusable] == [("TCGA-AA-0005-01Z-00-DX1.png", words)]
    assert words in found.problems()


def test_a_disk_that_fails_after_the_survey_costs_pictures_and_not_the_page(small_root: Path) -> None:
    found = survey(small_root, CLASSES)
    before = render(found, "a hospital")
    tile = next((small_root / "MSIH").iterdir())
    tile.unlink()
    tile.symlink_to(UNREADABLE)
    after = render(found, "a hospital")
    assert 0 < after.count("data:image/jpeg") < before.count("data:image/jpeg")
    assert after.count(tile.name) == before.count(tile.name), "its captions and numbers are there"


def test_folders_that_are_no_class_are_told(small_root: Path) -> None:
    asked = survey(small_root, ("tumour", "stroma"))
    assert asked.advice() == ("the folders that are there: MSIH, nonMSIH",)
    assert survey(small_root).advice() == ()
    (small_root / "MSIH").rename(small_root / "MSI")
    (small_root / "nonMSIH").rename(small_root / "MSSS")
    guessed = survey(small_root)
    (advice,) = guessed.advice()
    assert "(MSIH or MSIMUT, nonMSIH or MSS)" in advice
    assert advice.endswith('in its [config], classes = ["MSI", "MSSS"]')
    assert survey(small_root, ("MSI", "MSSS")).advice() == (), "whoever names them knows"
    assert "classes = [" in render(guessed, "a hospital")


def test_what_stops_a_training(small_root: Path) -> None:
    assert "class MSIH has tiles of 1 patient" in " ".join(survey(small_root).problems())
    shutil.rmtree(small_root / "nonMSIH")
    assert "no folder for class nonMSIH" in " ".join(survey(small_root).problems())
    assert "one class only" in " ".join(survey(small_root, ("MSIH",)).problems())


def test_patients_on_both_sides_of_a_split(small_root: Path) -> None:
    for half in ("TRAIN", "TEST"):
        shutil.copytree(small_root / "MSIH", small_root / half / "MSIH")
    found = survey(small_root, CLASSES)
    assert found.leaking == ("TCGA-AA-0000",)
    assert any("both" in line or "in a test" in line for line in found.problems())


def test_a_patient_of_two_spellings_is_one_of_both_sides(small_root: Path) -> None:
    for half, spelling in (("TRAIN", "P-17"), ("TEST", "p-17")):
        (small_root / half / "MSIH").mkdir(parents=True)
        shutil.copy(next((small_root / "MSIH").iterdir()), small_root / half / "MSIH" / "1.png")
        (small_root / half / "patients.csv").write_text(f"file,patient\nMSIH/1.png,{spelling}\n")
    assert survey(small_root, CLASSES).leaking == ("p-17",)


def test_a_patient_of_two_spellings_is_one_wherever_it_is_met(small_root: Path) -> None:
    """A folder that no training reads comes first here, and tells the text."""
    for half, patients in (("BEFORE", "pq"), ("TRAIN", "PQ")):
        rows = ["file,patient"]
        for name, patient in itertools.product(CLASSES, patients):
            (small_root / half / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(next((small_root / "MSIH").iterdir()), small_root / half / name / f"{patient}.png")
            rows.append(f"{name}/{patient}.png,{patient}")
        (small_root / half / "patients.csv").write_text("\n".join(rows))
    found = survey(small_root, CLASSES)
    assert set(found.by_patient()) == {"TCGA-AA-0000", "TCGA-AA-0001", "p", "q"}
    assert not found.problems(), "a training reads two patients of each class"


def test_what_a_training_would_not_read_does_not_count(tiles_root: TilesRoot, tmp_path: Path) -> None:
    """A folder is as good as its training half."""
    shutil.copytree(tiles_root.path, tmp_path / "set/TEST")
    assert survey(tmp_path / "set/TEST").refusal, "a test folder cannot be trained on, however good"
    held_out = folder.list_all(tmp_path / "set/TEST", CLASSES)
    for k in (0, 1):
        chosen = min(held_out.patients(k))
        for tile in held_out.tiles:
            if tile.patient == chosen and tile.class_index == k:
                inner = tmp_path / "set/TRAIN" / tile.path.relative_to(tmp_path / "set/TEST")
                inner.parent.mkdir(parents=True, exist_ok=True)
                tile.path.rename(inner)
    found = survey(tmp_path / "set", CLASSES)
    assert len(found.seen) == len(held_out.tiles)
    assert [line.partition(";")[0] for line in found.problems()] == [
        f"class {name} has tiles of 1 patient" for name in CLASSES
    ]


def test_the_page_is_one_file_with_pictures(messy: Path) -> None:
    page = render(survey(messy, CLASSES), "a <b> hospital")
    assert STAYS in page
    assert "<script" not in page
    assert "a &lt;b&gt; hospital" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http:" not in page and "https:" not in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) >= 20
    import base64

    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as image:
        assert np.asarray(image).std() > 1


def test_an_empty_survey_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "MSIH").mkdir()
    found = survey(tmp_path)
    assert found.problems() == (found.refusal,)
    assert "no folder for class nonMSIH" in render(found, "nothing")
