"""Tiles for this folder's tests."""

from __future__ import annotations

import pytest

from tests.support.tiles import TilesRoot, real_or_drawn


@pytest.fixture(scope="session")
def tiles_root(tmp_path_factory: pytest.TempPathFactory) -> TilesRoot:
    return real_or_drawn(tmp_path_factory.mktemp("drawn"))
