"""The tiles of one site as a frozen value: class, patient, hospital, and how many files were refused for which reason.

Made by `folder.scan` from names alone and narrowed by `cache.load`, which opens the files; judged by `check_patients`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from histofed.base.errors import BadData, TooFewPatients
from histofed.tiles import patients


@dataclass(frozen=True, order=True)
class Tile:
    """One file. `path` stays inside the site."""

    class_index: int
    path: Path
    patient: str
    hospital: str = ""
    """TCGA's tissue source site, or what `patients.csv` says; empty where neither says it."""


@dataclass(frozen=True)
class TileSet:
    """Tiles in a fixed order (class, then path), and what was refused."""

    classes: tuple[str, ...]
    """The experiment's classes in the order of their index."""
    tiles: tuple[Tile, ...]
    refused: Mapping[str, int]
    """Reason in words → number of files."""

    def count(self, class_index: int) -> int:
        """Tiles of one class."""
        return sum(tile.class_index == class_index for tile in self.tiles)

    def patients(self, class_index: int | None = None) -> frozenset[str]:
        """Patients of one class, or of all."""
        return frozenset(tile.patient for tile in self.tiles if class_index in (None, tile.class_index))

    def notes(self) -> tuple[str, ...]:
        """The refusals in words that may leave the site, for example `3 files refused: truncated or damaged`."""
        return tuple(
            f"{count} file{'s' if count > 1 else ''} refused: {reason}" for reason, count in sorted(self.refused.items())
        )


def narrow(tileset: TileSet, kept: Sequence[Tile], refused: Mapping[str, int]) -> TileSet:
    """The same site with only `kept`, and more refusals."""
    return TileSet(tileset.classes, tuple(kept), dict(Counter(tileset.refused) + Counter(refused)))


def check_classes(tileset: TileSet) -> None:
    """Every class has a tile. Raises `BadData` with what was refused, so that the reason can be seen."""
    for index, name in enumerate(tileset.classes):
        if tileset.count(index) == 0:
            found = f" ({'; '.join(tileset.notes())})" if tileset.refused else ""
            raise BadData(f"class {name} has no usable tile under the data root{found}; {_remedy(tileset.refused)}")


def _remedy(refused: Mapping[str, int]) -> str:
    """What to do about an empty class, in words that may leave the site."""
    if patients.UNKNOWN not in refused:
        return "add tiles or leave this experiment"
    return (
        f"write {patients.TABLE} into the data root, a table with the columns file (a tile's path below the data root) and "
        "patient, or leave this experiment"
    )


def check_patients(tileset: TileSet, minimum: int) -> None:
    """Every class has tiles of at least `minimum` patients: the site's own policy.

    Raises `TooFewPatients`, with numbers that stay at the site.
    """
    for index, name in enumerate(tileset.classes):
        count = len(tileset.patients(index))
        if count < minimum:
            people = "1 patient" if count == 1 else f"{count} patients"
            raise TooFewPatients(f"class {name} has tiles of {people}; this site requires at least {minimum}")
