"""Measures mean what their names say."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from histofed.tiles import duplicates
from histofed.tiles.decode import Pixels, decode_picture, read_bytes
from histofed.tiles.folder import scan
from histofed.tiles.measure import measure
from tests.support.tiles import CLASSES, TilesRoot


@pytest.fixture(scope="module")
def pictures(tiles_root: TilesRoot) -> list[Pixels]:
    return [decode_picture(read_bytes(tile.path)) for tile in scan(tiles_root.path, CLASSES).tiles[:24]]


def _uniform(*colour: int) -> Pixels:
    return np.full((64, 48, 3), colour, np.uint8)


def test_size_and_brightness() -> None:
    found = measure(_uniform(10, 10, 10))
    assert (found.width, found.height) == (48, 64)
    assert found.brightness == pytest.approx(10, abs=0.01)
    assert found.focus == pytest.approx(0, abs=1e-6)


def test_glass_is_no_tissue() -> None:
    half = _uniform(245, 244, 246)
    half[:32] = (150, 70, 150)
    assert measure(half).tissue == pytest.approx(0.5)
    glass = measure(_uniform(250, 250, 250))
    assert (glass.tissue, glass.haematoxylin, glass.eosin) == (0.0, 0.0, 0.0)


def test_stains_are_told_apart() -> None:
    def stained(haematoxylin: float, eosin: float) -> Pixels:
        density = haematoxylin * np.array([0.650, 0.704, 0.286]) + eosin * np.array([0.072, 0.990, 0.105])
        return _uniform(*(256 * np.exp(-density) - 1).round().astype(int))

    found = measure(stained(0.8, 0.3))
    assert found.haematoxylin == pytest.approx(0.8, abs=0.03)
    assert found.eosin == pytest.approx(0.3, abs=0.03)


def test_blur_lowers_focus(pictures: list[Pixels]) -> None:
    for picture in pictures:
        blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(2)))
        assert measure(blurred).focus < 0.3 * measure(picture).focus


def test_a_copy_has_nearly_the_same_hash_and_another_tile_has_not(pictures: list[Pixels]) -> None:
    hashes = [measure(picture).perceptual for picture in pictures]
    for picture, original in zip(pictures, hashes, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=50)
        two_thirds = (picture.shape[1] * 2 // 3, picture.shape[0] * 2 // 3)
        small = np.asarray(Image.fromarray(picture).resize(two_thirds, Image.Resampling.LANCZOS))
        for copy in (decode_picture(buffer.getvalue()), small):
            assert (measure(copy).perceptual ^ original).bit_count() <= duplicates.NEAR_BITS
    assert duplicates.near(hashes, []) == []


def test_groups_of_equal_and_of_similar() -> None:
    assert duplicates.exact(["a", "b", "a", "c", "b", "a"]) == [(0, 2, 5), (1, 4)]
    hashes = [0, 0xFF, 0, 0xFFFF, 2**63, 2**64 - 1]
    assert duplicates.near(hashes, []) == [(0, 1, 2, 3, 4)], "a chain of small steps is one group"
    assert duplicates.near(hashes, [(0, 2)], bits=2) == [(0, 4)], "the second of two equal files is left out"
    assert duplicates.near([], []) == []
    many = [int(value) for value in np.random.default_rng(0).integers(0, 2**63, 1500)]
    assert duplicates.near([*many, many[3] ^ 5], []) == [(3, 1500)], "also across blocks"
