"""What the caller of `make demo` asked for, and whether it can be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from histofed.base.experiment import parse_experiment
from histofed.recipes.registry import recipe

from .daemons import DemoError
from .layout import CLASSES, SITES, experiment_text

DRAWN_EDGE = 64
"""Pixels; tiles of the demo's own experiment are shrunk from it, as scanned ones are."""


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


def drawn_edge(wishes: Wishes) -> int:
    """Pixels of a drawn tile: never smaller than the model, which would refuse it. Raises as `check` does."""
    return wishes.size if wishes.size is not None else max(DRAWN_EDGE, _model_edge(wishes))


def check(wishes: Wishes) -> None:
    """What was asked for can be used; nothing of an earlier demo is removed before. Raises `DemoError`, `BadData`."""
    if not wishes.experiment.is_file():
        raise DemoError(f"there is no experiment file {wishes.experiment}")
    _model_edge(wishes)
    if wishes.data is None:
        from histofed.tiles.draw import check_numbers

        check_numbers(wishes.patients, wishes.tiles, drawn_edge(wishes))
        return
    if not wishes.data.is_dir():
        raise DemoError(f"there is no folder of tiles {wishes.data}")
    from histofed.tiles.folder import scan
    from histofed.tiles.split import assign

    assign(scan(wishes.data.resolve(), CLASSES), SITES, wishes.seed)


def _model_edge(wishes: Wishes) -> int:
    """Pixels of the tiles that the experiment, as it will be submitted, trains on; 0 where it needs none."""
    source = wishes.experiment.read_text(encoding="utf-8")
    text = experiment_text(source, name="demo", rounds=wishes.rounds, size=wishes.size)
    experiment = parse_experiment(text).file
    return recipe(experiment.recipe).demands(experiment.recipe_config).image_size or 0
