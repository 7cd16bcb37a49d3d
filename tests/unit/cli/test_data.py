"""`histofed data check` and `histofed data split` from the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from histofed.cli.main import main
from histofed.tiles import folder
from histofed.tiles.draw import draw_tiles
from tests.support.tiles import CLASSES
from tests.support.users import NOBODY, as_nobody, needs_root, open_tmp_path
from tests.unit.cli.conftest import Ran

open_to_all = open_tmp_path


class Shell:
    """Runs commands that need no aggregator."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Ran:
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        return Ran(code, captured.out, captured.err)


@pytest.fixture
def histofed_data(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiles")
    draw_tiles(root, patients_per_class=8, tiles_per_patient=2, size=48, seed=3)
    return root


def _parts(ran: Ran) -> dict[str, dict[str, Any]]:
    return {part["folder"]: part for part in ran.document["parts"]}


@pytest.fixture
def latin(tiles: Path, tmp_path: Path) -> Path:
    """Tiles from a machine whose names are Latin-1: one that can be used, one that cannot, and a class."""
    root = tmp_path / os.fsdecode(b"Pr\xe4parate")
    shutil.copytree(tiles, root)
    tile = min((root / "MSIH").iterdir())
    shutil.copy(tile, tile.with_name(os.fsdecode(b"gr\xf6\xdfer-") + tile.name))
    (root / "MSIH" / os.fsdecode(b"Pr\xe4parat.png")).write_bytes(b"")
    for old, new in (("MSIH", "Darm"), ("nonMSIH", os.fsdecode(b"\xfcbrige"))):
        (root / old).rename(root / new)
    return root


def test_names_that_are_not_utf8_are_told_escaped(histofed_data: Shell, latin: Path, tmp_path: Path) -> None:
    words = histofed_data("data", "check", latin, "--page", tmp_path / "page.html")
    assert words.code == 0, words.out
    assert "Darm/Pr\\xe4parat.png" in words.out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Tiles of Pr\\xe4parate" in page
    assert "gr\\xf6\\xdfer-" in page
    assert "\\xfcbrige" in page

    found = histofed_data("data", "check", latin, "--json").document
    assert [file["file"] for file in found["unusable_files"]] == ["Darm/Pr\\xe4parat.png"]
    assert any(name.startswith("Darm/gr\\xf6\\xdfer-") for group in found["exact_copies"] for name in group)


def test_check_as_table_document_and_page(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    words = histofed_data("data", "check", tiles, "--page", tmp_path / "page.html")
    assert words.code == 0
    assert "MSIH     16     8" in words.out
    assert "must stay there" in words.error
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "page.html").stat().st_mode & 0o077 == 0

    found = histofed_data("data", "check", tiles, "--json").document
    assert found["stays_in_hospital"] is True
    assert found["tiles"] == 32
    assert [one["patients"] for one in found["classes"]] == [8, 8]
    assert found["hospitals"][0]["hospital"] == "Z0"
    assert len(found["patients"]) == 16
    assert found["sizes"] == {"48x48": 32}
    assert found["quantities"]["tissue"]["median"] > 0.3
    assert found["problems"] == []


def test_a_picture_in_both_classes_is_told_with_its_files(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    shutil.copytree(tiles, root)
    twice = min((root / "MSIH").iterdir())
    shutil.copy(twice, root / "nonMSIH")
    found = histofed_data("data", "check", root)
    assert found.code == 0
    lines = [line.split() for line in found.out.splitlines() if twice.name in line]
    assert [(place, name) for _, place, _, name in lines] == [(f"{name}/{twice.name}", name) for name in CLASSES]
    assert "look at: 1 group of copies in two classes of one patient: all but one label is wrong" in found.out


def test_the_first_tiles_of_a_large_group_of_copies_are_told(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiles, tmp_path / "data")
    tile = min((root / "MSIH").iterdir())
    for number in range(29):
        shutil.copy(tile, root / "nonMSIH" / f"copy-{number:02d}-{tile.name}")
    words = histofed_data("data", "check", root)
    assert sum(line.startswith("1 ") for line in words.out.splitlines()) == 20
    assert "and 10 tiles more in group 1" in words.out
    (group,) = histofed_data("data", "check", root, "--json").document["exact_copies"]
    assert len(group) == 30


@pytest.mark.parametrize(("page", "words"), [("none/page.html", "make it first"), (".", "is a folder; name a file in it")])
def test_a_page_that_cannot_be_written_is_told_before_any_tile_is_read(
    histofed_data: Shell, tmp_path: Path, page: str, words: str
) -> None:
    # there are no tiles there, which a survey would say
    found = histofed_data("data", "check", tmp_path / "no-tiles", "--page", tmp_path / page)
    assert found.code == 65
    assert words in found.error


@pytest.mark.parametrize(
    "content", [b"", b"allow everything", b"<!doctype html><title>Minutes</title>", b"\xff\xd8\xff tissue"]
)
def test_a_page_takes_no_other_files_place(histofed_data: Shell, tiles: Path, tmp_path: Path, content: bytes) -> None:
    kept = tmp_path / "kept.html"
    kept.write_bytes(content)
    (tmp_path / "link.html").symlink_to(kept)
    for page in (kept, tmp_path / "link.html"):
        refused = histofed_data("data", "check", tiles, "--page", page)
        assert (refused.code, refused.out) == (65, "")
        assert f"{page} is there and is no page of `data check`" in refused.error
    assert kept.read_bytes() == content
    assert (tmp_path / "link.html").is_symlink()


def test_a_page_takes_the_place_of_an_earlier_page(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.HTML"
    for name in ("before", "after"):
        shutil.copytree(tiles, tmp_path / name)
        assert histofed_data("data", "check", tmp_path / name, "--page", page).code == 0
        assert f"<title>Tiles of {name}</title>" in page.read_text()


def test_what_is_no_file_is_no_page(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "page.html")
    assert "is no page of `data check`" in histofed_data("data", "check", tiles, "--page", tmp_path / "page.html").error


@pytest.mark.parametrize("name", ["page", "page.jpg", "consent.toml", ".html"])
def test_a_page_is_called_html(histofed_data: Shell, tiles: Path, tmp_path: Path, name: str) -> None:
    refused = histofed_data("data", "check", tiles, "--page", tmp_path / name)
    assert refused.code == 2
    assert "name it FILE.html" in refused.error
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "page",
    [
        "in/page.html",
        "in/MSIH/page.html",
        "out/../in/page.html",
        "way-in/page.html",
        "in/way-out/page.html",
        "way-in/link.html",
    ],
)
def test_a_page_stays_out_of_the_tiles(histofed_data: Shell, tiles: Path, tmp_path: Path, page: str) -> None:
    shutil.copytree(tiles, tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "way-in").symlink_to(tmp_path / "in/MSIH")
    (tmp_path / "in/way-out").symlink_to(tmp_path / "out")
    (tmp_path / "in/MSIH/link.html").symlink_to(tmp_path / "out/link.html")
    refused = histofed_data("data", "check", tmp_path / "in", "--page", tmp_path / page)
    assert refused.code == 2
    assert "lies below DIR" in refused.error
    assert (tmp_path / "in/MSIH/link.html").is_symlink()
    assert not list(tmp_path.rglob("page.html"))


@pytest.mark.parametrize("command", [("check",), ("split", "--holdout", "0.2", "out")])
@pytest.mark.parametrize(("link", "to"), [("MSIH/again", "."), ("way/out", ".."), ("w\udcfcy", "..")])
def test_the_link_that_leads_back_is_named(
    histofed_data: Shell, tiles: Path, tmp_path: Path, command: tuple[str, ...], link: str, to: str
) -> None:
    root = tmp_path / "in"
    shutil.copytree(tiles, root)
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(root / to)
    refused = histofed_data("data", command[0], root, *command[1:])
    assert refused.code == 65
    named = str(root / link).replace("\udcfc", "\\xfc")
    assert f"the link {named} leads back to a folder above it; remove it" in refused.error


@needs_root
@pytest.mark.parametrize("command", [("check",), ("split", "--by", "iid-tile", "--sites", "2", "out")])
def test_the_folder_that_may_not_be_read_is_named(
    histofed_data: Shell, tiles: Path, open_to_all: Path, command: tuple[str, ...]
) -> None:
    root = open_to_all / "in"
    shutil.copytree(tiles, root)
    assert histofed_data("data", "check", root).code == 0  # and what it imports late is imported
    (root / "notes").mkdir(mode=0o700)
    root.chmod(0o755)
    with as_nobody():
        refused = histofed_data("data", command[0], root, *command[1:])
    assert refused.code == 65
    assert f"{root / 'notes'} may not be read by this user ({NOBODY}); grant read access" in refused.error


@pytest.mark.parametrize("classes", ["", ",", "MSIH,", "MSIH,,nonMSIH"])
def test_a_class_without_a_name_is_a_wrong_call(histofed_data: Shell, tiles: Path, classes: str) -> None:
    refused = histofed_data("data", "check", tiles, f"--classes={classes}")
    assert refused.code == 2
    assert "is not a list such as MSIH,nonMSIH: a name is empty" in refused.error


def test_drawn_classes_are_chosen_by_name(histofed_data: Shell, tmp_path: Path) -> None:
    small = ("--patients", 2, "--tiles", 1, "--size", 32, "--classes", "STR,MSIH,MUC")
    drawn = histofed_data("tiles", "make", tmp_path / "in", *small, "--json").document
    assert (drawn["classes"], drawn["tiles"]) == (["STR", "MSIH", "MUC"], 6)
    found = histofed_data("data", "check", tmp_path / "in", "--classes", "STR,MSIH,MUC", "--json")
    assert found.code == 0
    assert [one["class"] for one in found.document["classes"]] == ["STR", "MSIH", "MUC"]


def test_check_of_what_cannot_be_trained_on_has_its_exit_code(histofed_data: Shell, tmp_path: Path) -> None:
    draw_tiles(tmp_path, patients_per_class=1, tiles_per_patient=1, size=32)
    ran = histofed_data("data", "check", tmp_path, "--json")
    assert ran.code == 65
    assert len(ran.document["problems"]) == 2
    assert histofed_data("data", "check", tmp_path / "nowhere").code == 65


def test_check_names_the_files_that_cannot_be_used(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    shutil.copytree(tiles, root)
    for number in range(25):
        (root / f"MSIH/blk-{number:02}-TCGA-ZZ-0001-01Z-00-DX1.png").write_bytes(b"")
    words = histofed_data("data", "check", root)
    assert words.code == 0
    assert "look at: 25 files that cannot be used: not a JPEG, PNG or TIFF image" in words.out
    assert "MSIH/blk-19-TCGA-ZZ-0001-01Z-00-DX1.png  not a JPEG" in words.out
    assert "blk-20" not in words.out
    assert "and 5 more" in words.out
    document = histofed_data("data", "check", root, "--json").document
    assert [one["file"] for one in document["unusable_files"]] == [
        f"MSIH/blk-{number:02}-TCGA-ZZ-0001-01Z-00-DX1.png" for number in range(25)
    ]


@pytest.mark.parametrize("command", [("check",), ("split", "--holdout", "0.2", "out")])
def test_a_folder_that_is_not_there_is_named(histofed_data: Shell, tmp_path: Path, command: tuple[str, ...]) -> None:
    verb, *rest = command
    ran = histofed_data("data", verb, tmp_path / "such", *rest)
    assert ran.code == 65
    assert f"DIR {tmp_path / 'such'} does not exist; name the folder" in ran.error
    assert "configuration" not in ran.error
    (tmp_path / "such").write_text("")
    assert f"DIR {tmp_path / 'such'} is not a folder" in histofed_data("data", verb, tmp_path / "such", *rest).error


def test_folders_that_no_preset_knows_are_no_fault(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    for name, other in (("MSIH", "MSI"), ("nonMSIH", "MSSS")):
        shutil.copytree(tiles / name, tmp_path / other)
    ran = histofed_data("data", "check", tmp_path)
    assert ran.code == 0
    assert "look at: no folder has the name of a class that the presets know" in ran.out
    assert 'classes = ["MSI", "MSSS"]' in ran.out
    asked = histofed_data("data", "check", tmp_path, "--classes", "tumour,stroma")
    assert asked.code == 65
    assert "it needs one named tumour and one named stroma" in asked.out
    assert "look at: the folders that are there: MSI, MSSS" in asked.out


def test_split_by_majority_with_held_out_parts(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("data", "split", tiles, out, "--by", "class-majority", "--sites", 2, "--ratio", 0.7, "--holdout", "0.1,0.2")
    ran = histofed_data(*arguments, "--json")
    assert ran.code == 0
    parts = _parts(ran)
    assert list(parts) == ["site-1", "site-2", "VALIDATION", "TEST"]
    assert parts["site-1"]["tiles"]["MSIH"] > parts["site-1"]["tiles"]["nonMSIH"]
    assert parts["site-2"]["tiles"]["MSIH"] < parts["site-2"]["tiles"]["nonMSIH"]
    assert sum(sum(part["tiles"].values()) for part in parts.values()) == 32
    assert ran.document["shared_patients"] == 0
    sets = [folder.list_all(out / name, CLASSES).patients() for name in parts]
    assert sum(map(len, sets)) == len(frozenset.union(*sets)) == 16
    assert len(folder.scan(out / "site-1", CLASSES).tiles) == sum(parts["site-1"]["tiles"].values())

    again = histofed_data(*arguments)
    assert again.code == 65
    assert f"{out / 'site-1'} is a folder with tiles already" in again.error


def test_another_split_in_the_same_folder_is_refused(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert histofed_data("data", "split", tiles, out, "--by", "iid-patient", "--sites", 2).code == 0
    before = sorted(out.rglob("*"))
    ran = histofed_data("data", "split", tiles, out, "--holdout", "0.1,0.2", "--seed", 1)
    assert ran.code == 65
    assert "holds another split (site-1, site-2)" in ran.error
    assert sorted(out.rglob("*")) == before


def test_only_the_training_half_is_split_and_that_is_said(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    assert histofed_data("data", "split", tiles, tmp_path / "first", "--holdout", "0.2,0.2").code == 0
    ran = histofed_data("data", "split", tmp_path / "first", tmp_path / "second", "--by", "iid-patient", "--sites", 2)
    assert ran.code == 0
    assert f"16 tiles outside the training half of {tmp_path / 'first'} are in no part" in ran.out


def test_sites_that_cannot_train_are_named(histofed_data: Shell, tmp_path: Path) -> None:
    draw_tiles(tmp_path / "in", patients_per_class=3, tiles_per_patient=1, size=32)
    ran = histofed_data("data", "split", tmp_path / "in", tmp_path / "out", "--by", "iid-patient", "--sites", 2, "--json")
    assert ran.code == 0
    warnings = ran.document["warnings"]
    assert len(warnings) == 2
    assert all("has 1 patient of class" in line and "require at least 2" in line for line in warnings)


def test_the_papers_split_warns(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    ran = histofed_data("data", "split", tiles, tmp_path / "out", "--by", "iid-tile", "--sites", 3)
    assert ran.code == 0
    assert "patients have tiles at several sites" in ran.error
    assert "LARGEST CLASS" in ran.out


def test_split_by_hospital_needs_no_number(histofed_data: Shell, tmp_path: Path) -> None:
    draw_tiles(tmp_path / "in", ("a", "b"), patients_per_class=2, tiles_per_patient=1, size=32)
    ran = histofed_data("data", "split", tmp_path / "in", tmp_path / "out", "--by", "hospital", "--json")
    assert list(_parts(ran)) == ["site-1", "site-2"]
    assert ran.document["notes"] == ["site-1 is Z0", "site-2 is Z1"]


def test_held_out_parts_alone(histofed_data: Shell, tiles: Path, tmp_path: Path) -> None:
    ran = histofed_data("data", "split", tiles, tmp_path / "out", "--holdout", "0.2", "--json")
    assert list(_parts(ran)) == ["TRAIN", "VALIDATION"]
    assert folder.scan(tmp_path / "out", CLASSES).count(0) == _parts(ran)["TRAIN"]["tiles"]["MSIH"]
    assert histofed_data("data", "split", tmp_path / "out/VALIDATION", tmp_path / "more", "--holdout", "0.2").code == 65


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((), "say how to split"),
        (("--by", "iid-patient"), "belong together"),
        (("--sites", "2", "--holdout", "0.1,0.1"), "belong together"),
        (("--by", "class-majority", "--sites", "2"), "needs --ratio"),
        (("--by", "dirichlet", "--sites", "2", "--ratio", "0.7"), "--ratio belongs to --by class-majority"),
        (("--by", "iid-tile", "--sites", "0"), "from 1 to 10000"),
        (("--by", "iid-tile", "--sites", "100000000000"), "from 1 to 10000"),
        (("--by", "magic", "--sites", "2"), "invalid choice"),
        (("--holdout", "a,b"), "is not two shares"),
        (("--holdout", "0.6,0.6"), "sum between 0 and 1"),
    ],
)
def test_wrong_calls_are_told(
    histofed_data: Shell, tiles: Path, tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    ran = histofed_data("data", "split", tiles, tmp_path / "out", *flags)
    assert ran.code == 2
    assert sentence in ran.error
    assert not (tmp_path / "out").exists()


def test_errors_are_documents_too(histofed_data: Shell, tmp_path: Path) -> None:
    ran = histofed_data("data", "split", tmp_path, tmp_path / "out", "--by", "iid-tile", "--sites", 2, "--json")
    assert ran.code == 65
    assert json.loads(ran.out)["error"]["kind"] == "BadData"
