"""Where an agent keeps what its trainer decoded, and that nobody else hears of the place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agent.config import load_config
from agent.failure import for_the_operator
from agent.layout import Layout
from agent.progress import Board
from agent.training import train
from histofed.base.clock import SystemClock
from histofed.base.errors import CannotWriteState
from histofed.base.ids import Json
from histofed.recipes.registry import recipe
from histofed.tiles.draw import draw_tiles
from tests.unit.agent.conftest import MakeAssignment

CONFIG: dict[str, Json] = {
    "classes": ["MSIH", "nonMSIH"],
    "image_size": 32,
    "steps": 1,
    "batch": 2,
    "discriminator": {"name": "cnn"},
}


async def test_decoded_tiles_are_kept_at_the_site(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    draw_tiles(tmp_path / "tiles", patients_per_class=2, tiles_per_patient=3, size=32)
    base = tmp_path / "gan.safetensors"
    recipe("gan").workshop().initialise(CONFIG, 1, base)
    assignment = replace(
        make_assignment(),
        recipe="gan",
        config=CONFIG,
        base=base,
        data=tmp_path / "tiles",
        cache=tmp_path / "cache",
        cache_bytes=10**8,
    )
    board = Board("train", SystemClock())
    result = await train(tmp_path, assignment, board.trained, 20.0)
    assert result.tiles == 12
    assert board.words() == "train 1 of 1 on cpu", "the administrator of a machine with a GPU wants to know"
    assert len([*(tmp_path / "cache").glob("*.tiles")]) == 1


def test_where_the_cache_is_and_that_its_place_is_not_told(tmp_path: Path) -> None:
    loaded = load_config(None, {"state_dir": str(tmp_path)}, {}).config
    assert loaded.data.cache_dir is None
    assert Layout(loaded.state_dir).tile_cache == tmp_path / "tile-cache"
    named = load_config(None, {"data": {"cache_dir": "/fast/cache", "cache_bytes": 0}}, {}).config
    assert named.data.cache_bytes == 0
    assert "/fast" not in for_the_operator(CannotWriteState("cannot write /fast/cache/x"), named)
