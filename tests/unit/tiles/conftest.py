"""Tiles for this folder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiles import TilesRoot, real_or_drawn


@pytest.fixture(scope="session")
def tiles_root(tmp_path_factory: pytest.TempPathFactory) -> TilesRoot:
    return real_or_drawn(tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """A root with one good tile of each class; a test adds what it is about."""
    from PIL import Image

    for index, name in enumerate(("MSIH", "nonMSIH")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), (200, 100, 150 + index)).save(tmp_path / name / f"TCGA-AA-000{index}-01Z-00-DX1.png")
    return tmp_path
