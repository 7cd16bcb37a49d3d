"""How far an update is from its base, and whether the two can be compared at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from histofed.base.errors import BadData
from histofed.weights.file import Tensors
from histofed.weights.header import FLOATS


@dataclass(frozen=True)
class Difference:
    """How an update differs from its base: L2 norm of (update - base) over all tensors; infinite when not finite."""

    norm: float
    not_finite: tuple[str, ...]


def difference(update: Tensors, base: Tensors) -> Difference:
    """Compare two files with the same tensors, piece by piece in float64. Raises `BadData` when they do not match."""
    check_same_meaning(update, base)
    total, bad = 0.0, []
    for name in base.specs:
        square = 0.0
        # a value that is not finite ends up in the sum, which is looked at below
        with np.errstate(over="ignore", invalid="ignore"):
            for new, old in zip(update.pieces(name), base.pieces(name), strict=True):
                delta = np.subtract(new, old, dtype=np.float64)
                # not np.dot: BLAS sums in an order that depends on its threads, and a clipped update on this norm
                square += float(np.square(delta, out=delta).sum())
        if not math.isfinite(square):
            bad.append(name)
        total += square
    return Difference(math.sqrt(total) if not bad else math.inf, tuple(bad))


def check_same_meaning(update: Tensors, base: Tensors) -> None:
    """Both files hold the same floating tensors: names, types, shapes. Raises `BadData` naming the first that differs."""
    for name in sorted({*update.specs, *base.specs}):
        new, old = update.specs.get(name), base.specs.get(name)
        if new is None or old is None:
            raise BadData(f"tensor {name[:80]!r} is {'missing from' if new is None else 'unknown to'} the model")
        if new.meaning != old.meaning:
            raise BadData(
                f"tensor {name[:80]!r} is {new.dtype}{list(new.shape)} where the model has {old.dtype}{list(old.shape)}"
            )
        if new.dtype not in FLOATS:
            raise BadData(f"tensor {name[:80]!r} of type {new.dtype} cannot be averaged; only floating tensors are shared")
