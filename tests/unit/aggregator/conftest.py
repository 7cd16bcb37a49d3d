"""What the tests share: an engine on a bench, and a state directory with its backup."""

from __future__ import annotations

from pathlib import Path

import pytest

from histofed.base.clock import FakeClock
from tests.support.centre import Centre
from tests.support.engine_bench import Bench, StandInForge


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An engine over a real journal and a real database, with a stand-in for the arithmetic."""
    clock = FakeClock()
    return Bench(tmp_path, clock, StandInForge(clock))


@pytest.fixture(scope="module")
def populated(tmp_path_factory: pytest.TempPathFactory) -> Centre:
    """A state directory with a round in it; not to be changed."""
    centre = Centre(tmp_path_factory.mktemp("populated"))
    centre.cli("init")
    centre.populate()
    return centre


@pytest.fixture(scope="module")
def backup_file(populated: Centre, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backup of `populated`; not to be changed."""
    path = tmp_path_factory.mktemp("file") / "backup"
    populated.cli("backup", str(path))
    return path


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    """An empty state directory with the configuration of `populated`."""
    return Centre(tmp_path / "centre")
