"""Drawn data sets: layout, naming, determinism, and that classes and sites can be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histofed.base.errors import AlreadyThere, BadData
from histofed.tiles import barcode, cache, folder
from histofed.tiles.draw import ARCHITECTURES, Drawn, draw_tiles
from histofed.tiles.tileset import TileSet
from tests.support.tiles import CLASSES


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("federation")
    assert draw_tiles(root, ("a", "b"), patients_per_class=2, tiles_per_patient=3, size=48, seed=5) == Drawn(2, 8, 24)
    return root


def test_it_is_a_data_set_in_the_published_layout(drawn: Path) -> None:
    patients: list[str] = []
    for place, site in enumerate("ab"):
        found = folder.scan(drawn / site, CLASSES)
        assert [found.count(0), found.count(1)] == [6, 6]
        assert [len(found.patients(0)), len(found.patients(1))] == [2, 2]
        assert not found.refused
        names = {barcode.parse(tile.path.name) for tile in found.tiles}
        assert {name.source_site for name in names if name} == {f"Z{place}"}, "no code of a real hospital"
        patients += found.patients()
    assert len(set(patients)) == 8


def test_the_seed_decides_every_byte(drawn: Path, tmp_path: Path) -> None:
    draw_tiles(tmp_path / "same", ("a", "b"), patients_per_class=2, tiles_per_patient=3, size=48, seed=5)
    draw_tiles(tmp_path / "other", ("a", "b"), patients_per_class=2, tiles_per_patient=3, size=48, seed=6)

    def content(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.jpg")}

    assert content(tmp_path / "same") == content(drawn)
    assert not content(tmp_path / "other").keys() & content(drawn).keys()


def test_classes_and_sites_look_different(drawn: Path) -> None:
    a, b = (cache.load(folder.scan(drawn / site, CLASSES), 48) for site in "ab")
    colour = {
        (site, k): tiles.pixels[tiles.labels == k].mean((0, 2, 3)) for site, tiles in (("a", a), ("b", b)) for k in (0, 1)
    }
    for site in "ab":
        redder = colour[site, 1] - colour[site, 0]
        assert redder[0] - redder[2] > 10, "stroma around glands is pinker than a sheet of nuclei"
    assert np.abs(colour["a", 1] - colour["b", 1]).max() > 3, "each laboratory has its stain"


def test_five_classes_can_be_told_apart_at_other_patients(tmp_path: Path) -> None:
    classes = tuple(ARCHITECTURES)
    assert len(classes) == 5
    drawn = draw_tiles(tmp_path, patients_per_class=4, tiles_per_patient=3, size=32, seed=2, classes=classes)
    assert drawn == Drawn(1, 20, 60)
    tiles = cache.load(folder.scan(tmp_path, classes), 32)
    looks = np.concatenate([tiles.pixels.mean((2, 3)), tiles.pixels.std((2, 3))], axis=1)
    first_half = np.array([tile.patient in _first_half(tiles.tileset, tile.class_index) for tile in tiles.tileset.tiles])
    centres = np.stack([looks[first_half & (tiles.labels == k)].mean(0) for k in range(5)])
    nearest = np.linalg.norm(looks[~first_half][:, None] - centres, axis=2).argmin(1)
    right = nearest == tiles.labels[~first_half]
    assert right.mean() >= 0.8, "colour and contrast alone would be right one time in five by chance"


def _first_half(tileset: TileSet, k: int) -> list[str]:
    return sorted(tileset.patients(k))[:2]


def test_one_site_needs_no_name(tmp_path: Path) -> None:
    assert draw_tiles(tmp_path, patients_per_class=1, tiles_per_patient=1, size=32) == Drawn(1, 2, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MSIH", "nonMSIH"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("keep me")
    with pytest.raises(AlreadyThere, match="not empty"):
        draw_tiles(tmp_path, ("b", "a"))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "thesis.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 16},
        {"patients_per_class": 0},
        {"tiles_per_patient": 0},
        {"sites": ("a", "a")},
        {"classes": ()},
        {"classes": ("MUC", "MUC")},
        {"classes": ("MSIH", "BONE")},
    ],
)
def test_what_cannot_be_drawn(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(BadData, match="draw"):
        draw_tiles(tmp_path, **wrong)  # type: ignore[arg-type]  # one of several keyword types
