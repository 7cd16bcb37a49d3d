"""gRPC reads its cipher list when it is loaded; histofed sets it (histofed/__init__.py) and so must come first."""

import os

import pytest
from hypothesis import HealthCheck, settings

import histofed  # noqa: F401  # isort: split
from tests.support.tiles import TilesRoot, real_or_drawn

# a property is about what comes out, not about the time of an example, or of Hypothesis' first table of characters
settings.register_profile("histofed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("histofed")


def pytest_report_header() -> str:
    """Say which tiles the tests read."""
    named = os.environ.get("HISTOFED_TILES")
    return f"tiles: real, {named}" if named else "tiles: drawn (HISTOFED_TILES=DIR names real ones)"


@pytest.fixture(scope="session")
def tiles_root(tmp_path_factory: pytest.TempPathFactory) -> TilesRoot:
    """A folder of tiles in the published layout, real or drawn."""
    return real_or_drawn(tmp_path_factory.mktemp("tiles"))
