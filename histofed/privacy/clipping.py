"""Clip an update to a norm: the global L2 bound that a site keeps and the aggregator checks.

An update is written as full weights, `base + clip(trained - base)` (Abadi et al. 2016, "Deep Learning with Differential
Privacy", algorithm 1, with one site's whole update in the place of one example's gradient). The norm runs over all shared
tensors together.

Invariant: the norm of (result - base), *as the aggregator measures it from the stored float32 values*, is never above the
bound. Rounding `base + delta` to the tensor's type may move a value away from the base, by up to half a unit in its last
place, which for a small delta on a large weight is more than the delta itself; so every stored value is rounded towards
its base. The base is representable, hence no value ends further away than its clipped delta.

The files are walked piece by piece: memory is a few hundred kilobytes, whatever the model. The agent's trainer
(`agent/trainer.py`) is the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from histofed.base import durable
from histofed.base.errors import TrainingFailed
from histofed.base.hashing import sha256_file
from histofed.weights import Array, TensorFile, Written, difference, header_of, save_stream

_ROOM: Final = 1e-9
"""Relative room below the bound: above the error of a float64 sum over pieces of 2^16 squares (below 1e-11)."""


@dataclass(frozen=True)
class Clipped:
    """What clipping did: the file it wrote, and L2 norms of (weights - base) before and after."""

    file: Written
    norm_before: float
    norm: float

    @property
    def clipped(self) -> bool:
        """The trained weights were further from the base than the bound."""
        return self.norm != self.norm_before


def clip_file(trained: Path, base: Path, max_norm: float, target: Path) -> Clipped:
    """Write `base + delta * min(1, max_norm / |delta|)` to `target`, with the base's names, types and shapes.

    The same files and the same bound give the same bytes. Raises `BadData` when the two files do not hold the same
    floating tensors, `TrainingFailed` when the trained weights are not finite, `CannotWriteState`.
    """
    if not (max_norm > 0 and math.isfinite(max_norm)):
        raise ValueError(f"a norm bound is positive and finite, not {max_norm}")
    with TensorFile(trained) as new, TensorFile(base) as old:
        found = difference(new, old)
        if found.not_finite:
            raise TrainingFailed(
                f"training diverged: {len(found.not_finite)} tensors are not finite, the first is {found.not_finite[0]!r}; "
                "a lower learning rate may help"
            )
        specs = [(spec.name, spec.dtype, spec.shape) for spec in old.specs.values()]
        if found.norm <= max_norm:
            return Clipped(_as_it_is(trained, new, specs, target), found.norm, found.norm)
        written = save_stream(target, specs, _shrunk(new, old, max_norm / found.norm * (1 - _ROOM)))
    with TensorFile(target) as result, TensorFile(base) as old:
        norm = difference(result, old).norm
    assert norm <= max_norm, f"clipping to {max_norm} left a norm of {norm}"
    return Clipped(written, found.norm, norm)


def _as_it_is(trained: Path, new: TensorFile, specs: Sequence[tuple[str, str, tuple[int, ...]]], target: Path) -> Written:
    """The trained weights at `target`: the file itself where it is one of ours, and a copy in our form where it is not."""
    begin, size = header_of(specs)
    with trained.open("rb") as file:
        ours = file.read(len(begin)) == begin and trained.stat().st_size == len(begin) + size
    if not ours:
        return save_stream(target, specs, _unchanged(new))
    durable.link(trained, target)
    return Written(sha256_file(target), len(begin) + size)


def _unchanged(new: TensorFile) -> Iterator[Array]:
    for name in new.names:
        yield from new.pieces(name)


def _shrunk(new: TensorFile, old: TensorFile, scale: float) -> Iterator[Array]:
    """The result's tensors in pieces, in the file's order."""
    for name in old.names:
        for trained, base in zip(new.pieces(name), old.pieces(name), strict=True):
            yield shrink(trained, base, scale)


def shrink(trained: Array, base: Array, scale: float) -> Array:
    """`base + scale * (trained - base)` in the base's type, each value rounded towards its base; 0 <= scale < 1.

    Exact claim: |result - base| <= scale * |trained - base| for every element, with the differences taken in float64.
    """
    wide = base.astype(np.float64)
    delta = np.subtract(trained, wide, dtype=np.float64) * scale
    result = (wide + delta).astype(base.dtype)
    too_far = np.abs(np.subtract(result, wide, dtype=np.float64)) > np.abs(delta)
    return np.where(too_far, np.nextafter(result, base), result)
