"""What the caller of `make demo` asked for, and whether it can be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .daemons import DemoError
from .layout import CLASSES, SITES


@dataclass(frozen=True)
class Wishes:
    """What the caller asked for."""

    data: Path | None
    experiment: Path
    rounds: int | None
    size: int | None
    patients: int
    tiles: int
    seed: int
    keep: bool


def check(wishes: Wishes) -> None:
    """What was asked for can be used; nothing of an earlier demo is removed before. Raises `DemoError`, `BadData`."""
    if not wishes.experiment.is_file():
        raise DemoError(f"there is no experiment file {wishes.experiment}")
    if wishes.data is None:
        return
    if not wishes.data.is_dir():
        raise DemoError(f"there is no folder of tiles {wishes.data}")
    from histofed.tiles.folder import scan
    from histofed.tiles.split import assign

    assign(scan(wishes.data.resolve(), CLASSES), SITES, wishes.seed)
