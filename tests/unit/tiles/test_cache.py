"""Tiles in memory: order, labels, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histofed.base.errors import BadData, TryLater
from histofed.tiles import cache, folder
from histofed.tiles.store import TileStore
from tests.support.bad_pictures import UNREADABLE
from tests.support.tiles import CLASSES, TilesRoot


def test_real_or_drawn_tiles_decode(tiles_root: TilesRoot) -> None:
    tileset = folder.scan(tiles_root.path, CLASSES)
    tiles = cache.load(tileset, 32)
    assert tiles.pixels.shape == (len(tileset.tiles), 3, 32, 32)
    assert tiles.labels.tolist() == [tile.class_index for tile in tileset.tiles]
    assert tiles.tileset.refused == {}
    red, green, blue = tiles.pixels.mean((0, 2, 3))
    assert red > green < blue, "stained tissue is pink and purple"


def test_unusable_files_are_counted_and_left_out(small_root: Path) -> None:
    Image.new("L", (64, 64)).save(small_root / "MSIH/TCGA-AA-0005-01Z-00-DX1.png")
    Image.new("L", (64, 64)).save(small_root / "MSIH/TCGA-AA-0006-01Z-00-DX1.png")
    (small_root / "nonMSIH/TCGA-AA-0007-01Z-00-DX1.png").write_bytes(b"no image")
    tiles = cache.load(folder.scan(small_root, CLASSES), 32)
    assert tiles.labels.tolist() == [0, 1]
    assert tiles.pixels[:, 2, 0, 0].tolist() == [150, 151]
    assert tiles.tileset.patients() == {"TCGA-AA-0000", "TCGA-AA-0001"}
    assert tiles.tileset.refused == {"not 8-bit RGB: grey": 2, "not a JPEG, PNG or TIFF image": 1}


def test_a_class_of_unusable_files_is_refused(small_root: Path) -> None:
    next((small_root / "MSIH").iterdir()).write_bytes(b"no image")
    with pytest.raises(BadData, match=r"class MSIH has no usable tile .*1 file refused: not a JPEG"):
        cache.load(folder.scan(small_root, CLASSES), 32)


@pytest.mark.parametrize("stored", [False, True])
def test_tiles_that_a_hanging_disk_keeps_back_are_not_left_out(small_root: Path, tmp_path: Path, stored: bool) -> None:
    (small_root / "MSIH/TCGA-AA-0005-01Z-00-DX1.png").symlink_to(UNREADABLE)
    with pytest.raises(TryLater, match="the disk of the tiles cannot be read"):
        cache.load(folder.scan(small_root, CLASSES), 32, store=TileStore(tmp_path / "cache") if stored else None)


def test_the_fingerprint_tells_other_tiles(small_root: Path) -> None:
    tileset = folder.scan(small_root, CLASSES)
    first = cache.load(tileset, 32)
    assert first.fingerprint() == cache.load(tileset, 32).fingerprint() != cache.load(tileset, 36).fingerprint()
    swapped = cache.TileCache(first.tileset, first.pixels, np.array([1, 0]))
    assert swapped.fingerprint() != first.fingerprint()
