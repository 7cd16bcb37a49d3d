from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from histofed.cli.main import main
from tests.support.operator_service import RunningAggregator, running_aggregator


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    error: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout as the one JSON document that it must be."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def aggregator(tmp_path: Path) -> Iterator[RunningAggregator]:
    with running_aggregator(tmp_path / "aggregator") as running:
        yield running


@pytest.fixture
def config(aggregator: RunningAggregator, tmp_path: Path) -> Path:
    """operator.toml of an operator of that federation."""
    return aggregator.federation.write_operator(tmp_path / "operator", aggregator.address)


@pytest.fixture
def histofed(config: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process: `histofed("rounds", "list")`."""

    def run(*arguments: str, config: Path = config) -> Ran:
        capsys.readouterr()
        code = main(["--config", str(config), *arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
