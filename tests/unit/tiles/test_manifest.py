"""What is held out is held out, also after somebody has moved or copied it."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path
from typing import Literal, TypeAlias

import pytest

from histofed.base.errors import BadData, HeldOutPatients
from histofed.tiles import folder
from histofed.tiles.manifest import MANIFEST, Manifest, make_manifest, patient_hash, read_manifest, write_manifest
from tests.support.tiles import CLASSES

Form: TypeAlias = Literal["NFC", "NFD"]


@pytest.mark.parametrize("role", ["train", "validation", "test"])
def test_it_comes_back(tmp_path: Path, role: str) -> None:
    assert read_manifest(tmp_path) is None
    manifest = make_manifest(role, "salt", ["TCGA-AA-0001"])  # type: ignore[arg-type]  # one of the three
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest.holds_out("tcga-aa-0001")
    assert not manifest.holds_out("TCGA-AA-0002")
    assert b"TCGA" not in (tmp_path / MANIFEST).read_bytes()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "nonsense", '{"format":"histofed.split/v1","role":"boss","salt":"","held_out":[]}']
)
def test_one_that_cannot_be_understood_stops_training(small_root: Path, text: str) -> None:
    (small_root / MANIFEST).write_text(text)
    with pytest.raises(BadData, match="cannot be understood"):
        folder.scan(small_root, CLASSES)


@pytest.mark.parametrize("role", ["validation", "test"])
def test_a_marked_folder_is_not_trained_on_under_any_name(small_root: Path, role: str) -> None:
    write_manifest(small_root, Manifest(role, "salt", frozenset()))  # type: ignore[arg-type]  # one of the two
    with pytest.raises(BadData, match=f"the {role} part of a split"):
        folder.scan(small_root, CLASSES)


def test_nor_what_lies_in_it_or_around_it(small_root: Path, tmp_path: Path) -> None:
    inner, outer = tmp_path / "outer/innocent/more", tmp_path / "outer"
    inner.mkdir(parents=True)
    for name in CLASSES:
        (small_root / name).rename(inner / name)
    write_manifest(inner.parent, Manifest("test", "salt", frozenset()))
    for root in (inner, inner.parent, outer):
        with pytest.raises(BadData, match="test part of a split"):
            folder.scan(root, CLASSES)
    link = tmp_path / "link"
    link.symlink_to(inner)
    with pytest.raises(BadData, match="test part of a split"):
        folder.scan(link, CLASSES)


def test_held_out_patients_in_a_training_folder_are_found(small_root: Path) -> None:
    write_manifest(small_root, make_manifest("train", "salt", ["TCGA-ZZ-0009"]))
    assert len(folder.scan(small_root, CLASSES).tiles) == 2
    shutil.copy(next((small_root / "MSIH").iterdir()), small_root / "MSIH/TCGA-ZZ-0009-01Z-00-DX1.png")
    with pytest.raises(HeldOutPatients, match="tiles of 1 patient whom its split holds out") as caught:
        folder.scan(small_root, CLASSES)
    assert "ZZ" not in str(caught.value)


SMALL = ("ΐ-1", "ǰ7", "ﬁ-2", "\N{LATIN SMALL LETTER DOTLESS I}7")
CAPITALS = [*((one, one.upper()) for one in SMALL), ("Strauß-3", "STRAUẞ-3")]


@pytest.mark.parametrize(("one", "other"), CAPITALS + [(other, one) for one, other in CAPITALS])
def test_a_held_out_patient_is_found_in_any_capitals(one: str, other: str) -> None:
    manifest = make_manifest("train", "salt", [one])
    assert manifest.holds_out(other)
    assert patient_hash("salt", one) in manifest.held_out, "an older release looks for it as it is written"
    assert Manifest("train", "salt", frozenset({patient_hash("salt", one)})).holds_out(one)


@pytest.mark.parametrize("then", ["NFC", "NFD"])
@pytest.mark.parametrize("now", ["NFC", "NFD"])
def test_a_held_out_patient_is_found_by_either_composition_of_accents(small_root: Path, then: Form, now: Form) -> None:
    wanted, listed = (unicodedata.normalize(form, "José-1") for form in (then, now))
    write_manifest(small_root, make_manifest("train", "salt", [wanted]))
    shutil.copy(next((small_root / "MSIH").iterdir()), small_root / "MSIH/new.png")
    (small_root / "patients.csv").write_text(f"file,patient\nMSIH/new.png,{listed}\n", encoding="utf-8")
    with pytest.raises(HeldOutPatients, match="tiles of 1 patient whom its split holds out"):
        folder.scan(small_root, CLASSES)


@pytest.mark.parametrize("place", ["0.png", "2.png"])
def test_a_patient_who_was_two_to_an_older_release_is_found_by_either_text(small_root: Path, place: str) -> None:
    """It held one of them out and trained on the other; the first text met is the name of both now."""
    write_manifest(small_root, Manifest("train", "salt", frozenset({patient_hash("salt", "GROẞ-1")})))
    rows = ["file,patient"]
    for name, patient in (("1.png", "Groß-1"), (place, "GROẞ-1")):
        assert len(folder.scan(small_root, CLASSES).tiles) == 2 + len(rows) - 1, "what it took is taken"
        (small_root / "MSIH" / name).write_bytes(b"")
        rows.append(f"MSIH/{name},{patient}")
        (small_root / "patients.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(HeldOutPatients, match="tiles of 1 patient whom its split holds out"):
        folder.scan(small_root, CLASSES)
