"""The hospitals of the end-to-end tests, and data roots as hospitals sometimes have them."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

SITES = ("north", "south", "east", "west")
HOSTILE = "mallory"
"""Enrolled like the others; no agent ever runs for it, tests speak in its name."""
REFUSED = ("truncated or damaged", "not a JPEG, PNG or TIFF image", "smaller than 32 pixels", "not 8-bit RGB: grey")
"""Why each file that `dirty_tiles` adds is refused."""


def dirty_tiles(source: Path, target: Path) -> Path:
    """The tiles of `source` and four more that cannot be used."""
    shutil.copytree(source, target)
    folder = _classes(target)[0]
    good = next(folder.iterdir()).read_bytes()
    (folder / "blk-BROKEN-TCGA-ZZ-0001-01Z-00-DX1.jpg").write_bytes(good[: len(good) // 2])
    (folder / "blk-NOIMAGE-TCGA-ZZ-0002-01Z-00-DX1.jpg").write_bytes(b"no picture at all")
    Image.new("RGB", (20, 20)).save(folder / "blk-TINY-TCGA-ZZ-0003-01Z-00-DX1.png")
    Image.new("L", (64, 64)).save(folder / "blk-GREY-TCGA-ZZ-0004-01Z-00-DX1.png")
    return target


def one_patient(source: Path, target: Path) -> Path:
    """The tiles of a single patient of each class of `source`."""
    for folder in _classes(source):
        tiles = sorted(folder.iterdir())
        first = _patient(tiles[0])
        (target / folder.name).mkdir(parents=True)
        for tile in tiles:
            if _patient(tile) == first:
                shutil.copy(tile, target / folder.name / tile.name)
    return target


def empty_class(source: Path, target: Path) -> Path:
    """The tiles of `source`, but no file in one class's folder."""
    first, *others = _classes(source)
    (target / first.name).mkdir(parents=True)
    for folder in others:
        shutil.copytree(folder, target / folder.name)
    return target


def _classes(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _patient(tile: Path) -> str:
    """`TCGA-AA-0000` of `blk-XXXX-TCGA-AA-0000-01Z-00-DX1.jpg`."""
    return tile.name[tile.name.index("TCGA-") :][:12]
