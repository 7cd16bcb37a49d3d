"""A base and a trained model in files, with every type that may be shared and every awkward shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from histofed import weights
from histofed.base.encoding import Encoding
from histofed.encodings.file import Form
from histofed.weights import PIECE, Array


@dataclass(frozen=True)
class Pair:
    """What a site has when its training is done."""

    base: Path
    update: Path
    digest: str

    def form(self, encoding: Encoding) -> Form:
        return Form(encoding, self.digest)


def tensors(seed: int, near: dict[str, Array] | None = None) -> dict[str, Array]:
    """Random ones, or some that were trained a little from those that are given."""
    draw = np.random.default_rng(seed)
    shapes = {
        "w": ((3, PIECE // 2 + 5), np.float32),
        "scalar": ((), np.float32),
        "none": ((0, 4), np.float32),
        "half": ((700,), np.float16),
        "wide": ((20, 30), np.float64),
    }
    if near is None:
        return {name: draw.standard_normal(shape).astype(dtype) for name, (shape, dtype) in shapes.items()}
    return {name: (old + 1e-3 * draw.standard_normal(old.shape)).astype(old.dtype) for name, old in near.items()}


MakePair = Callable[..., Pair]


@pytest.fixture
def make_pair(tmp_path: Path) -> MakePair:
    def make(base: dict[str, Array] | None = None, update: dict[str, Array] | None = None) -> Pair:
        base = tensors(1) if base is None else base
        written = weights.save(tmp_path / "base", base)
        weights.save(tmp_path / "update", tensors(2, near=base) if update is None else update)
        return Pair(tmp_path / "base", tmp_path / "update", written.sha256)

    return make


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    return make_pair()
