"""`patients.csv` tells whose tile a file is, or is refused with the line."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from histofed.base.errors import BadData
from histofed.tiles.patients import TABLE, Person, identify, read_table, spelling

BARCODE = "TCGA-AA-0001-01Z-00-DX1.png"


@pytest.mark.parametrize(
    "text",
    [
        "file,patient,hospital\nMSIH/1.png,P-1,north\n",
        "\ufeffhospital; FILE ;patient\r\n north ; MSIH\\1.png ; P-1 \r\n\r\n",
        'file,patient,hospital,note\n"./MSIH/1.png",P-1,north,"a, b"\n',
    ],
)
def test_tables_as_people_save_them(tmp_path: Path, text: str) -> None:
    (tmp_path / TABLE).write_text(text, encoding="utf-8")
    table = read_table(tmp_path)
    assert table is not None
    assert table.find(tmp_path / "MSIH/1.png") == Person("P-1", "north")
    assert table.find(tmp_path / "MSIH/2.png") is None


def test_no_table_is_no_error(tmp_path: Path) -> None:
    assert read_table(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "needs a first line"),
        ("file,person\nsecret.png,P-1\n", "needs a first line"),
        ("file,patient,patient\nsecret.png,P-1,P-2\n", "needs a first line"),
        ("file,patient\nsecret.png,\n", "line 2: a file or its patient is missing"),
        ("file,patient\nsecret.png\n", "line 2: a file or its patient is missing"),
        ("file,patient\nsecret.png,P-1\nsecret.png,P-2\n", "line 3: the file is listed before"),
        ("file,patient\nsecret.png,P\x07\n", "line 2: a patient or hospital is not"),
        ('file,patient\n"secret.png,P-1\n', "no line of a table"),
    ],
)
def test_a_table_that_could_be_misread_is_refused_without_its_content(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / TABLE).write_text(text)
    with pytest.raises(BadData, match=sentence) as caught:
        read_table(tmp_path)
    assert "secret" not in str(caught.value)
    assert "P-1" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / TABLE).write_bytes("file,patient\nä.png,P".encode("latin-1"))
    with pytest.raises(BadData, match="save it as UTF-8"):
        read_table(tmp_path)


def test_a_barcode_and_a_table_must_agree(tmp_path: Path) -> None:
    (tmp_path / TABLE).write_text(f"file,patient,hospital\n{BARCODE},tcga-aa-0001,north\n")
    table = read_table(tmp_path)
    assert table is not None
    assert identify(tmp_path / BARCODE, ()) == Person("TCGA-AA-0001", "AA")
    assert identify(tmp_path / BARCODE, (table,)) == Person("TCGA-AA-0001", "north")
    (tmp_path / TABLE).write_text(f"file,patient\n{BARCODE},TCGA-AA-0002\n")
    other = read_table(tmp_path)
    assert other is not None
    with pytest.raises(BadData, match="another patient than the barcode"):
        identify(tmp_path / BARCODE, (other,))


@given(st.characters(codec="utf-8"), st.sampled_from([str.upper, str.lower, str.casefold, str.swapcase]))
@example("ẞ", str.lower)
@example("ΐ", str.upper)
@example("\N{LATIN SMALL LETTER DOTLESS I}", str.upper)
def test_one_person_in_any_capitals_and_either_composition(letter: str, other: Callable[[str], str]) -> None:
    name = f"a{letter}b"
    common = spelling(name)
    assert spelling(unicodedata.normalize("NFC", other(name))) == common
    assert spelling(unicodedata.normalize("NFD", other(name))) == common
    assert spelling(common) == common


def test_the_nearest_table_wins(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / TABLE).write_text("file,patient\ninner/1.png,far\n2.png,far\n")
    (tmp_path / "inner" / TABLE).write_text("file,patient\n1.png,near\n")
    tables = tuple(table for folder in (tmp_path, tmp_path / "inner") if (table := read_table(folder)))
    assert identify(tmp_path / "inner/1.png", tables) == Person("near", "")
    assert identify(tmp_path / "inner/3.png", tables) is None


@given(st.text(max_size=300))
def test_any_text_is_a_table_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / TABLE).write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert read_table(folder) is not None
    except BadData as error:
        assert TABLE in str(error)
    finally:
        (folder / TABLE).unlink()
