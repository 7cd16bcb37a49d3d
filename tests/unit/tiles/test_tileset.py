"""What a set of tiles says about itself, and the site's minimum of patients."""

from __future__ import annotations

from pathlib import Path

import pytest

from histofed.base.errors import BadData, TooFewPatients
from histofed.tiles.folder import NO_PATIENT
from histofed.tiles.tileset import Tile, TileSet, check_classes, check_patients, narrow

TILES = (
    Tile(0, Path("/secret/a.jpg"), "TCGA-AA-0001"),
    Tile(0, Path("/secret/b.jpg"), "TCGA-AA-0002"),
    Tile(1, Path("/secret/c.jpg"), "TCGA-AA-0003"),
    Tile(1, Path("/secret/d.jpg"), "TCGA-AA-0003"),
)
SET = TileSet(("MSIH", "nonMSIH"), TILES, {"truncated or damaged": 1})


def test_counts() -> None:
    assert [SET.count(0), SET.count(1)] == [2, 2]
    assert SET.patients() == {"TCGA-AA-0001", "TCGA-AA-0002", "TCGA-AA-0003"}
    assert SET.patients(1) == {"TCGA-AA-0003"}


def test_narrow_adds_refusals() -> None:
    narrowed = narrow(SET, TILES[:3], {"truncated or damaged": 1, "smaller than 32 pixels": 1})
    assert narrowed.refused == {"truncated or damaged": 2, "smaller than 32 pixels": 1}
    assert narrowed.notes() == ("1 file refused: smaller than 32 pixels", "2 files refused: truncated or damaged")


def test_a_class_of_one_patient_is_refused_where_two_are_required() -> None:
    with pytest.raises(TooFewPatients, match=r"^class nonMSIH has tiles of 1 patient; this site requires at least 2$"):
        check_patients(SET, 2)
    check_patients(SET, 1)


def test_an_empty_class_is_refused_in_words_without_names() -> None:
    with pytest.raises(BadData, match=r"class nonMSIH has no usable tile .*1 file refused: truncated or damaged") as caught:
        check_classes(narrow(SET, TILES[:2], {}))
    assert "secret" not in str(caught.value)
    assert "TCGA" not in str(caught.value)


def test_tiles_without_a_patient_are_told_to_be_listed() -> None:
    """The operator reads it too: what to write, and no name of a file or a patient."""
    nobodys = TileSet(("MSIH", "nonMSIH"), (), {NO_PATIENT: 135})
    with pytest.raises(
        BadData, match=r"write patients\.csv into the data root, .* columns file \(.*\) and patient, or leave"
    ) as caught:
        check_classes(nobodys)
    assert "add tiles" not in str(caught.value), "more tiles of nobody would help as little"
    assert "secret" not in str(caught.value)
    with pytest.raises(BadData, match="add tiles or leave this experiment"):
        check_classes(narrow(SET, TILES[:2], {}))
