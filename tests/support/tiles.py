"""Tiles for tests: the real ones where HISTOFED_TILES names them, else drawn ones; says which."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from histofed.tiles.draw import draw_tiles

CLASSES = ("MSIH", "nonMSIH")


@dataclass(frozen=True)
class TilesRoot:
    """A folder of tiles in the published layout."""

    path: Path
    kind: str
    """`real` or `drawn`."""


def real_or_drawn(scratch: Path) -> TilesRoot:
    """The folder that HISTOFED_TILES names, or tiles drawn under `scratch`."""
    named = os.environ.get("HISTOFED_TILES")
    if named:
        return TilesRoot(Path(named), "real")
    draw_tiles(scratch, patients_per_class=8, tiles_per_patient=3, size=48, seed=1)
    return TilesRoot(scratch, "drawn")
