"""What real tiles of the training patients score, whole and spoiled: how near to real a distance of so much is.

A target for a generator is a target for its detail. Tiles at half their size have all that is larger than two pixels in its
place; shuffled squares have all that is smaller than the squares, in no place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import avg_pool2d, interpolate

from bench.quality.judge import Judge
from bench.quality.recipes import CLASSES, EDGE
from histofed.base import durable
from histofed.tiles import cache, folder

Pixels = npt.NDArray[np.uint8]
FILE: Final = "yardsticks.json"
_SEED: Final = 3


def measure(data: Path, nets: Path, out: Path) -> None:
    """Write `yardsticks.json` unless it is there. Raises `AlreadyThere` for an `out` of other tiles."""
    judge = Judge(data, nets, out)
    if (out / FILE).exists():
        return
    tiles = cache.load(folder.scan(judge.training_folder, CLASSES), EDGE, EDGE)
    found = judge.of_real()
    found["spoiled"] = {name: judge.distances(spoil(tiles.pixels)) for name, spoil in SPOILS.items()}
    durable.replace(out / FILE, f"{json.dumps(found, indent=1)}\n".encode(), mode=0o644)


def read(out: Path) -> Mapping[str, Any]:
    """What `measure` wrote."""
    found: Mapping[str, Any] = json.loads((out / FILE).read_text())
    return found


def _shrunk(ratio: int) -> Callable[[Pixels], Pixels]:
    """Averaged over squares of `ratio` pixels and drawn at full size again, (N, 3, S, S) both."""

    def spoil(pixels: Pixels) -> Pixels:
        small = avg_pool2d(torch.from_numpy(np.asarray(pixels)).float(), ratio)
        large = interpolate(small, scale_factor=float(ratio), mode="bicubic")
        return large.round().clamp(0, 255).byte().numpy()

    return spoil


def _shuffled(edge: int) -> Callable[[Pixels], Pixels]:
    """Each tile's squares of `edge` pixels, in an order of its own."""

    def spoil(pixels: Pixels) -> Pixels:
        random = np.random.default_rng(_SEED)
        tiles, channels, size, _ = pixels.shape
        side = size // edge
        squares = np.asarray(pixels).reshape(tiles, channels, side, edge, side, edge).transpose(0, 2, 4, 1, 3, 5)
        squares = squares.reshape(tiles, side * side, channels, edge, edge)
        mixed = np.stack([one[random.permutation(side * side)] for one in squares])
        mixed = mixed.reshape(tiles, side, side, channels, edge, edge).transpose(0, 3, 1, 4, 2, 5)
        return np.ascontiguousarray(mixed.reshape(tiles, channels, size, size))

    return spoil


SPOILS: Final[Mapping[str, Callable[[Pixels], Pixels]]] = {
    "half size": _shrunk(2),
    "a quarter of the size": _shrunk(4),
    "squares of 16 pixels shuffled": _shuffled(16),
    "squares of 8 pixels shuffled": _shuffled(8),
}
