"""A patient is read from a barcode or not at all."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.tiles.barcode import Barcode, parse

ALNUM = string.ascii_uppercase + string.digits
codes = st.tuples(st.text(ALNUM, min_size=2, max_size=2), st.text(ALNUM, min_size=4, max_size=4))


@pytest.mark.parametrize(
    ("name", "barcode"),
    [
        (
            "TCGA-QG-A5YX-01Z-00-DX1.1E43A49F-6F84-4C8C-AF45-B8DB16D3B6F0_(1234,567.5).jpg",
            Barcode("TCGA-QG-A5YX", "QG", "TCGA-QG-A5YX-01Z-00-DX1"),
        ),
        ("blk-AAADTPTGAKQV-TCGA-A6-3809-01Z-00-DX2.png", Barcode("TCGA-A6-3809", "A6", "TCGA-A6-3809-01Z-00-DX2")),
        ("tcga-nh-a6gc-01z-00-dx1.jpg", Barcode("TCGA-NH-A6GC", "NH", "TCGA-NH-A6GC-01Z-00-DX1")),
        ("TCGA-A6-3809-01A-01-BS1.jpg", Barcode("TCGA-A6-3809", "A6", "TCGA-A6-3809-01A-01-BS1")),
    ],
)
def test_published_names(name: str, barcode: Barcode) -> None:
    assert parse(name) == barcode


@pytest.mark.parametrize(
    "name",
    [
        "tile_0001.jpg",
        "TCGA-A6-3809.jpg",
        "TCGA-A6-38-01Z-00-DX1.jpg",
        "XTCGA-A6-3809-01Z-00-DX1.jpg",
        "",
        "TCGA-A6-3809-0٣Z-00-DX1.jpg",
    ],
)
def test_other_names_have_no_patient(name: str) -> None:
    assert parse(name) is None


@given(
    codes,
    st.integers(1, 99),
    st.booleans(),
    st.sampled_from(["", "blk-ABCDEFGHIJKL-"]),
    st.sampled_from([".jpg", "_(1,2).png"]),
)
def test_every_barcode_comes_back(code: tuple[str, str], slide: int, lower: bool, prefix: str, tail: str) -> None:
    site, participant = code
    name = f"{prefix}TCGA-{site}-{participant}-01Z-00-DX{slide}{tail}"
    found = parse(name.lower() if lower else name)
    assert found == Barcode(f"TCGA-{site}-{participant}", site, f"TCGA-{site}-{participant}-01Z-00-DX{slide}")


@given(st.text(max_size=200))
def test_any_name_gives_a_well_formed_patient_or_none(name: str) -> None:
    found = parse(name)
    if found is not None:
        assert found.patient in name.upper()
        assert found.slide.startswith(found.patient)
        assert len(found.patient) == len("TCGA-AA-0000")
