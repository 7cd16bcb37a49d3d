"""Tiles for this folder's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histofed.tiles import cache, folder
from histofed.tiles.cache import TileCache
from histofed.tiles.store import TileStore
from tests.support.tiles import CLASSES, TilesRoot, real_or_drawn

SIZE = 32
"""The edge at which tiles are decoded."""


@pytest.fixture(scope="session")
def tiles_root(tmp_path_factory: pytest.TempPathFactory) -> TilesRoot:
    return real_or_drawn(tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """A root with one good tile of each class; a test adds what it is about."""
    for index, name in enumerate(("MSIH", "nonMSIH")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), (200, 100, 150 + index)).save(tmp_path / name / f"TCGA-AA-000{index}-01Z-00-DX1.png")
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> TileStore:
    return TileStore(tmp_path / "cache")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of six noisy tiles each, beside the cache."""
    for index, name in enumerate(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            noise = np.random.default_rng([index, number]).integers(0, 255, (48, 48, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "data" / name / f"TCGA-AA-{index}{number:03}-01Z-00-DX1.png")
    return tmp_path / "data"


def load(data: Path, store: TileStore | None) -> TileCache:
    return cache.load(folder.scan(data, CLASSES), SIZE, store=store)


def same(one: TileCache, other: TileCache) -> bool:
    return (
        one.tileset == other.tileset
        and one.fingerprint() == other.fingerprint()
        and bool((one.pixels == other.pixels).all())
        and one.labels.tolist() == other.labels.tolist()
    )
