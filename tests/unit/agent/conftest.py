"""What the agent's tests share: a site with a scripted aggregator, and an assignment of the torch-free recipe.

A real child process can train it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.assignment import Assignment, Result
from agent.training import train
from histofed.base.ids import sha256
from histofed.recipes.registry import recipe
from tests.support.agent_site import SITE, AgentSite
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation

MakeAssignment = Callable[..., Assignment]


@pytest.fixture
def federation() -> Federation:
    return Federation()


@pytest.fixture
async def aggregator(tmp_path: Path, federation: Federation) -> AsyncIterator[FakeAggregator]:
    async with FakeAggregator(tmp_path / "aggregator", federation) as running:
        yield running


@pytest.fixture
async def site(tmp_path: Path, federation: Federation, aggregator: FakeAggregator) -> AsyncIterator[AgentSite]:
    """Not started yet."""
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as built:
        yield built


@pytest.fixture
def make_assignment(tmp_path: Path) -> MakeAssignment:
    """`make_assignment(steps=5, delay_s=0.0, ...)`: fields of the assignment, everything else goes into the config."""

    def make(*, max_norm: float = 1e4, threads: int = 1, private: Path | None = None, **config: Any) -> Assignment:
        config = {"dimension": 10, "steps": 5, **config}
        base = tmp_path / "base.safetensors"
        recipe("mean").workshop().initialise({"dimension": 10, "steps": 1}, 1, base)
        output = tmp_path / "output"
        output.mkdir(exist_ok=True)
        return Assignment(
            recipe="mean",
            config=config,
            base=base,
            base_sha256=sha256(base.read_bytes()),
            private=private,
            private_round=0,
            data=tmp_path / "tiles",
            minimum_patients=2,
            seed=7,
            max_norm=max_norm,
            output=output,
            threads=threads,
            device="cpu",
            nice=0,
        )

    return make


@pytest.fixture
def trained(aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every training that begins, by its folder; one of `behind` lasts until the site has connected again."""
    begun: list[str] = []

    async def counted(room: Path, *arguments: Any) -> Result:
        begun.append(room.name)
        if room.name.startswith("behind."):
            await aggregator.wait_for("WaitForWork", 2)
        return await train(room, *arguments)

    monkeypatch.setattr("agent.work.train", counted)
    return begun
