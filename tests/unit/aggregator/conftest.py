"""What the tests of the engine and of those around it share."""

from __future__ import annotations

from pathlib import Path

import pytest

from histofed.base.clock import FakeClock
from tests.support.engine_bench import Bench, StandInForge


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An engine over a real journal and a real database, with a stand-in for the arithmetic."""
    clock = FakeClock()
    return Bench(tmp_path, clock, StandInForge(clock))
