"""A data set for machines without data: drawn tiles in the layout and naming of the published ones.

`DIRECTORY[/SITE]/CLASS/blk-<12 letters>-TCGA-<site>-<patient>-01Z-00-DX1.jpg`. Source-site codes begin with Z, which
the TCGA code tables do not assign to a hospital, so that a drawn tile is not taken for a real one. Deterministic by seed.
The classes are the published two and, for experiments with more, tissues that lie around a tumour, named as in
NCT-CRC-HE-100K. Called by `histofed tiles make` and by the tests.
"""

from __future__ import annotations

import io
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from histofed.base import durable
from histofed.base.errors import AlreadyThere, BadData
from histofed.base.seeds import seed as seed_of
from histofed.tiles.tissue import Architecture, Stain, draw_stain, draw_tile, draw_tumour

CLASSES: Final = ("MSIH", "nonMSIH")
"""What is drawn unless other classes are named."""
ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "MSIH": "sheets",
    "nonMSIH": "glands",
    "LYM": "lymphoid",
    "MUC": "mucin",
    "STR": "stroma",
}
"""Every class that can be drawn, and what it looks like."""
_CODE: Final = string.digits + string.ascii_uppercase
MAXIMUM_SITES: Final = len(_CODE)


@dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    sites: int
    patients: int
    tiles: int


def draw_tiles(
    directory: Path,
    sites: Sequence[str] = (),
    patients_per_class: int = 6,
    tiles_per_patient: int = 12,
    size: int = 96,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
) -> Drawn:
    """Draw tiles of `classes`, some of `ARCHITECTURES`, under `directory`, one folder per site where sites are named.

    Each site has its own stain, each patient a tumour of one class. A site's tiles depend on the seed, the classes and its
    place in the list, so more sites can be drawn later. Raises `AlreadyThere` for a folder that is not empty, `BadData` for
    numbers or classes that cannot be drawn.
    """
    check_numbers(patients_per_class, tiles_per_patient, size)
    if len(sites) > MAXIMUM_SITES or len(set(sites)) != len(sites):
        raise BadData(f"draw at most {MAXIMUM_SITES} sites, each with its own name")
    if not classes or len(set(classes)) != len(classes) or not ARCHITECTURES.keys() >= set(classes):
        raise BadData(f"draw each class once, of these: {', '.join(ARCHITECTURES)}")
    folders = [directory / name for name in sites] or [directory]
    for folder in folders:
        if folder.exists() and any(folder.iterdir()):
            raise AlreadyThere(f"{folder} is not empty; remove it or draw elsewhere")
    tiles = 0
    for place, folder in enumerate(folders):
        rng = np.random.default_rng(seed_of("tiles", seed, place))
        tiles += _draw_site(folder, "Z" + _CODE[place], rng, classes, patients_per_class, tiles_per_patient, size)
    return Drawn(len(folders), len(folders) * len(classes) * patients_per_class, tiles)


def check_numbers(patients_per_class: int, tiles_per_patient: int, size: int) -> None:
    """Tiles of `size` pixels can be drawn in such numbers. Raises `BadData`."""
    if not (1 <= patients_per_class <= 500 and 1 <= tiles_per_patient <= 2000 and 32 <= size <= 1024):
        raise BadData("draw 1 to 500 patients per class, 1 to 2000 tiles per patient, 32 to 1024 pixels")


def _draw_site(
    folder: Path, code: str, rng: np.random.Generator, classes: Sequence[str], patients: int, tiles: int, size: int
) -> int:
    stain = draw_stain(rng)
    people = iter(rng.choice(len(_CODE) ** 4, len(classes) * patients, replace=False))
    for name in classes:
        class_folder = durable.make_directory(folder / name, mode=0o755)
        for _ in range(patients):
            patient = f"TCGA-{code}-{_participant(int(next(people)))}"
            _draw_patient(class_folder, patient, rng, stain, tiles, size)
    return len(classes) * patients * tiles


def _draw_patient(folder: Path, patient: str, rng: np.random.Generator, stain: Stain, tiles: int, size: int) -> None:
    tumour = draw_tumour(rng)
    for _ in range(tiles):
        letters = "".join(rng.choice(list(string.ascii_uppercase), 12))
        picture = draw_tile(rng, ARCHITECTURES[folder.name], tumour, stain, size)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=92, subsampling=0)
        durable.replace(folder / f"blk-{letters}-{patient}-01Z-00-DX1.jpg", buffer.getvalue(), mode=0o644, fresh=True)


def _participant(number: int) -> str:
    """A four-character participant code."""
    code = ""
    for _ in range(4):
        number, digit = divmod(number, len(_CODE))
        code += _CODE[digit]
    return code
