from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from scripts.demolib.daemons import Daemon
from scripts.demolib.federation import make_tiles, stopped_if_it_fails
from scripts.demolib.layout import Layout
from scripts.demolib.wishes import Wishes

DEMO = Path(__file__).parents[3] / "examples/demo.toml"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Daemon]]:
    """Two daemons, neither started."""
    made = []
    for name in ("before", "now"):
        (tmp_path / name).mkdir()
        made.append(Daemon(name, tmp_path / name, (sys.executable, "-c", "import time; time.sleep(60)")))
    yield made
    for daemon in made:
        daemon.wait_stopped(0.0)


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


def test_when_a_start_fails_what_ran_before_goes_on(pair: list[Daemon]) -> None:
    before, now = pair
    before.start()
    with pytest.raises(RuntimeError, match="did not answer"), stopped_if_it_fails(pair):
        now.start()
        raise RuntimeError("did not answer")
    assert before.running()
    assert not now.running()


def test_when_all_start_all_go_on(pair: list[Daemon]) -> None:
    with stopped_if_it_fails(pair):
        for daemon in pair:
            daemon.start()
    assert all(daemon.running() for daemon in pair)
