"""A hospital's tiles as its agent meets them: what is wrong with them is told in counts, never in names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import load_config
from agent.layout import Layout
from agent.training import train
from agent.work import for_the_operator
from histofed.base.errors import BadData, CannotWriteState
from histofed.recipes.registry import recipe
from histofed.tiles.draw import draw_tiles
from tests.support.agent_site import AgentSite, task, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation
from tests.unit.agent.conftest import MakeAssignment

CONFIG = {"classes": ["MSIH", "nonMSIH"], "image_size": 32, "steps": 1, "batch": 2, "discriminator": {"name": "cnn"}}
TOML = """
name = "pilot"
recipe = "gan"
rounds = 1
[config]
image_size = 32
steps = 1
batch = 2
discriminator = { name = "cnn" }
"""


@pytest.fixture
async def aggregator(tmp_path: Path) -> AsyncIterator[FakeAggregator]:
    async with FakeAggregator(tmp_path / "aggregator", Federation()) as running:
        yield running


async def test_a_site_with_one_patient_refuses_for_good(tmp_path: Path, aggregator: FakeAggregator) -> None:
    tiles = tmp_path / "tiles"
    draw_tiles(tiles, patients_per_class=1, tiles_per_patient=3, size=32)
    async with AgentSite(tmp_path / "site", aggregator.federation.site(), aggregator.address) as site:
        site.work.config = site.config.model_copy(update={"data": site.config.data.model_copy(update={"root": tiles})})
        aggregator.offer(aggregator.make_offer(task(), toml=TOML))
        site.start()
        heard = await aggregator.wait_for("FailTask", seconds=90)
        await until(lambda: site.state.task_in_hand() is None)
    assert not heard.request.retryable
    assert "requires at least 2" in heard.request.reason
    assert "TCGA" not in heard.request.reason
    assert str(tiles) not in heard.request.reason


async def test_unreadable_tiles_are_counted_and_the_others_are_used(
    tmp_path: Path, make_assignment: MakeAssignment, caplog: pytest.LogCaptureFixture
) -> None:
    tiles = tmp_path / "tiles"
    draw_tiles(tiles, patients_per_class=2, tiles_per_patient=3, size=32)
    victim = min((tiles / "MSIH").iterdir())
    victim.write_bytes(victim.read_bytes()[:200])
    base = tmp_path / "gan.safetensors"
    recipe("gan").workshop().initialise(CONFIG, 1, base)
    assignment = replace(make_assignment(), recipe="gan", config=CONFIG, base=base, data=tiles)
    result = await train(tmp_path, assignment, lambda progress: None, 20.0)
    assert (result.tiles, result.patients) == (11, 4)
    assert any("1 " in note for note in result.notes)
    assert victim.name not in " ".join(result.notes) + caplog.text


async def test_a_folder_without_tiles_is_told(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    (tmp_path / "tiles" / "MSIH").mkdir(parents=True)
    assignment = replace(make_assignment(), recipe="gan", config=CONFIG, data=tmp_path / "tiles")
    with pytest.raises(BadData, match="no folder for class nonMSIH"):
        await train(tmp_path, assignment, lambda progress: None, 20.0)


async def test_decoded_tiles_are_kept_at_the_site(tmp_path: Path, make_assignment: MakeAssignment) -> None:
    draw_tiles(tmp_path / "tiles", patients_per_class=2, tiles_per_patient=3, size=32)
    base = tmp_path / "gan.safetensors"
    recipe("gan").workshop().initialise(CONFIG, 1, base)
    kept = {"cache": tmp_path / "cache", "cache_bytes": 10**8}
    assignment = replace(make_assignment(), recipe="gan", config=CONFIG, base=base, data=tmp_path / "tiles", **kept)
    result = await train(tmp_path, assignment, lambda progress: None, 20.0)
    assert result.tiles == 12
    assert len([*(tmp_path / "cache").glob("*.tiles")]) == 1


def test_where_the_cache_is_and_that_its_place_is_not_told(tmp_path: Path) -> None:
    loaded = load_config(None, {"state_dir": str(tmp_path)}, {}).config
    assert loaded.data.cache_dir is None
    assert Layout(loaded.state_dir).tile_cache == tmp_path / "tile-cache"
    named = load_config(None, {"data": {"cache_dir": "/fast/cache", "cache_bytes": 0}}, {}).config
    assert named.data.cache_bytes == 0
    assert "/fast" not in for_the_operator(CannotWriteState("cannot write /fast/cache/x"), named)
