"""The weighted mean of pieces of tensors, the same to the bit whatever the order of arrival, the threads or the processor.

Each element is summed in float64 in the order given by elementwise IEEE operations, never by BLAS. One piece, or equal ones,
give exactly their own values. `aggregator/aggregate.py` calls it for updates and for the tensors that follow a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from histofed.weights import PIECE, Array


class WeightedMean:
    """Means of pieces, weighted by `shares` (which sum to 1), in two float64 buffers of `PIECE` elements."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = tuple(shares)
        self._total = np.empty(PIECE, np.float64)
        self._term = np.empty(PIECE, np.float64)

    def of(self, parts: Sequence[Array]) -> Array | None:
        """The mean of as many pieces as there are shares, in their type; None when a value is not finite."""
        total, term = self._total[: parts[0].size], self._term[: parts[0].size]
        # infinite and undefined values are looked for at the end, in one pass
        with np.errstate(over="ignore", invalid="ignore"):
            # the first is stored, not added to zero: 0.0 + -0.0 would lose the sign
            np.copyto(total, parts[0])
            total *= self._shares[0]
            for part, share in zip(parts[1:], self._shares[1:], strict=True):
                np.copyto(term, part)
                term *= share
                total += term
            if parts[0].dtype == np.float64:
                return _between(total, parts)
            # narrower types cannot overflow a float64 sum of one piece
            return total.astype(parts[0].dtype) if math.isfinite(total.sum()) else None


def _between(total: Array, parts: Sequence[Array]) -> Array | None:
    """`total` moved into the range of the float64 `parts`, where a true mean lies; None when one is not finite.

    Narrower types lose the sum's rounding when it is cast to them; for float64 this makes the mean of equal values exact.
    """
    low, high = np.minimum.reduce(parts), np.maximum.reduce(parts)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    clipped: Array = np.clip(total, low, high)
    return clipped
