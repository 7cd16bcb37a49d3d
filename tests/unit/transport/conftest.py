"""What the tests of a transfer begin with: a file to send, and where the aggregator keeps what comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.blob_calls import BLOB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "update.safetensors"
    path.write_bytes(BLOB)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"
