"""gRPC reads its cipher list when it is loaded; histofed sets it (histofed/__init__.py) and so must come first."""

import os

import pytest

import histofed  # noqa: F401  # isort: split
from tests.support.tiles import TilesRoot, real_or_drawn


def pytest_report_header() -> str:
    """Say which tiles the tests read."""
    named = os.environ.get("HISTOFED_TILES")
    return f"tiles: real, {named}" if named else "tiles: drawn (HISTOFED_TILES=DIR names real ones)"


@pytest.fixture(scope="session")
def tiles_root(tmp_path_factory: pytest.TempPathFactory) -> TilesRoot:
    """A folder of tiles in the published layout, real or drawn."""
    return real_or_drawn(tmp_path_factory.mktemp("tiles"))
