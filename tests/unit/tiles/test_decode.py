"""Every kind of file that is no tile has a reason; none is a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histofed.base.errors import TryLater
from histofed.tiles import decode
from histofed.tiles.decode import MAXIMUM_BYTES, Refused, decode_tile, read_tile, suspicion_is_enough
from tests.support.bad_pictures import BAD_PICTURES, UNREADABLE
from tests.support.tiff import DIRECTORY, tiff


def _picture(mode: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new(mode, size)


def _animation(path: Path) -> None:
    _picture("RGB").save(path, "TIFF", save_all=True, append_images=[_picture("RGB")])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "not a JPEG, PNG or TIFF image"),
        (lambda path: path.write_text("a letter"), "not a JPEG, PNG or TIFF image"),
        (lambda path: _picture("RGB").save(path, "GIF"), "not a JPEG, PNG or TIFF image"),
        (lambda path: _picture("RGB").save(path, "BMP"), "not a JPEG, PNG or TIFF image"),
        (lambda path: _picture("RGBA").save(path, "PNG"), "not 8-bit RGB: alpha"),
        (lambda path: _picture("RGB").save(path, "PNG", transparency=(0, 0, 0)), "not 8-bit RGB: alpha"),
        (lambda path: _picture("P").save(path, "PNG"), "not 8-bit RGB: palette"),
        (lambda path: _picture("I;16").save(path, "PNG"), "not 8-bit RGB: 16 bits"),
        (lambda path: _picture("RGB", (31, 64)).save(path, "PNG"), "smaller than 32 pixels"),
        (_animation, "more than one picture in the file"),
        *((write, reason) for reason, write in BAD_PICTURES.items()),
    ],
)
def test_what_is_no_tile_is_refused_with_its_reason(tmp_path: Path, write: Callable[[Path], object], reason: str) -> None:
    path = tmp_path / "secret-name.jpg"
    write(path)
    with pytest.raises(Refused) as caught:
        read_tile(path, 32)
    assert str(caught.value) == reason


def test_a_file_that_vanished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="truncated or damaged"):
        read_tile(tmp_path / "gone.png", 32)


def test_a_disk_that_cannot_be_read_says_nothing_about_the_tile(tmp_path: Path) -> None:
    (tmp_path / "secret-name.png").symlink_to(UNREADABLE)
    with pytest.raises(TryLater, match="cannot be read: Input/output error") as caught:
        read_tile(tmp_path / "secret-name.png", 32)
    assert "secret-name" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_tile_is_read_in_channel_order(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (64, 64), (250, 120, 10)).save(tmp_path / "tile", kind)
    pixels = read_tile(tmp_path / "tile", 32)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.mean((1, 2)) - [250, 120, 10]).max() <= 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("planar", [False, True])
def test_the_bits_of_a_tiff_are_told_by_its_pixels_alone(order: str, compressed: bool, planar: bool) -> None:
    """Pillow reads 16 bits as 8, some of them as other pixels, and where a directory lies is no number of bits."""
    assert decode_tile(tiff(8, order, compressed=compressed, planar=planar), 32).std() > 10
    with pytest.raises(Refused, match="not 8-bit RGB: 16 bits"):
        decode_tile(tiff(16, order, compressed=compressed, planar=planar), 32)


def test_the_middle_square_is_kept_and_averaged(tmp_path: Path) -> None:
    source = np.zeros((64, 128, 3), np.uint8)
    source[:, 32:96, 0] = 200  # the middle square
    source[::2, :, 1] = 100  # stripes of one pixel
    Image.fromarray(source).save(tmp_path / "tile.png")
    pixels = read_tile(tmp_path / "tile.png", 32)
    assert (pixels[0] == 200).all()
    assert (pixels[1] == 50).all(), "shrinking must average, or stripes and nuclei alias"


def test_a_small_tile_is_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "tile.png")
    assert (read_tile(tmp_path / "tile.png", 64) == 9).all()


@given(cut=st.integers(0, 1500), noise=st.binary(max_size=40), place=st.integers(0, 1500))
def test_damaged_bytes_give_a_tile_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes, place: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jpg"
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(path, "JPEG")
    data = bytearray(path.read_bytes())
    data[place : place + len(noise)] = noise
    path.write_bytes(bytes(data[: len(data) - cut] if cut < len(data) else b""))
    try:
        pixels = read_tile(path, 32)
    except Refused as reason:
        assert str(path) not in str(reason)
    else:
        assert pixels.shape == (3, 32, 32)


def test_a_tiff_whose_second_directory_lacks_its_size_is_refused() -> None:
    with pytest.raises(Refused, match="truncated or damaged"):
        decode_tile(tiff(8, second=True), 32)


@given(noise=st.binary(min_size=1, max_size=12), place=st.integers(DIRECTORY, len(tiff(8, second=True)) - 1))
def test_a_damaged_directory_gives_a_tile_or_a_reason(noise: bytes, place: int) -> None:
    data = bytearray(tiff(8, second=True))
    data[place : place + len(noise)] = noise
    with contextlib.suppress(Refused), suspicion_is_enough():
        assert decode_tile(bytes(data), 32).shape == (3, 32, 32)


def test_a_fault_of_ours_is_no_verdict_on_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise TypeError("a mistake")

    monkeypatch.setattr(decode, "_square", fails)
    with pytest.raises(TypeError, match="a mistake"):
        decode_tile(tiff(8), 32)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "tile.png").open("wb") as file:
        file.truncate(MAXIMUM_BYTES + 1)  # a hole: no disk is used
    with pytest.raises(Refused, match="far too large a file"):
        read_tile(tmp_path / "tile.png", 32)
