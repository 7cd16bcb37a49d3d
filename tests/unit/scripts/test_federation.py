from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from scripts.demolib.federation import make_tiles
from scripts.demolib.layout import Layout
from scripts.demolib.wishes import Wishes

DEMO = Path(__file__).parents[3] / "examples/demo.toml"


@pytest.mark.parametrize(("model", "size", "edge"), [(32, None, 64), (128, None, 128), (128, 96, 96)])
def test_drawn_tiles_suffice_for_the_experiment(tmp_path: Path, model: int, size: int | None, edge: int) -> None:
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(re.sub(r"image_size = \d+", f"image_size = {model}", DEMO.read_text()))
    layout = Layout(tmp_path / "demo")
    make_tiles(layout, Wishes(None, experiment, None, size, 1, 1, 0, False), lambda _: None)
    tiles = [*layout.tiles.glob("*/*/*.jpg")]
    assert len(tiles) == 8
    for tile in tiles:
        with Image.open(tile) as image:
            assert image.size == (edge, edge)
