"""What an encoding changed, against the float32 tensors that only the site has: measured there, reported with the update.

By the triangle inequality the weighted means of the sites' largest and root mean square errors bound those of the weighted
average of their updates. So the round's means of these metrics (`aggregator/models.py`) are what the operator is told about
the aggregate's error against float32, although no float32 update ever arrived.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from histofed.weights import PIECE, Array

PREFIX: Final = "encoding_"
"""Of every metric here."""


@dataclass(frozen=True)
class Loss:
    """The error (decoded - trained) over all tensors of an update, and its size."""

    largest: float
    """Of any weight, absolute."""
    rms: float
    """Root of the mean square over all weights."""
    relative: float
    """L2 norm of the error / L2 norm of (trained - base); 0 where nothing was trained."""
    ratio: float
    """Bytes of the file / bytes of the plain tensors."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """As the manifest reports it."""
        return {
            f"{PREFIX}error_max": self.largest,
            f"{PREFIX}error_rms": self.rms,
            f"{PREFIX}error_relative": self.relative,
            f"{PREFIX}ratio": self.ratio,
        }


class Tally:
    """Sums in float64, piece by piece, in one buffer of `PIECE` elements: fresh ones would cost more than the sums."""

    def __init__(self) -> None:
        self._largest = 0.0
        self._error = self._trained = self._decoded = 0.0
        self._weights = 0
        self._buffer = np.empty(PIECE, np.float64)

    def add(self, trained: Array, decoded: Array, base: Array) -> None:
        """One piece of each, of the same length; `decoded` may be `trained` itself where nothing is lost."""
        step = self._squares(trained, base)
        self._weights += trained.size
        self._trained += step
        if decoded is trained:
            self._decoded += step
            return
        self._decoded += self._squares(decoded, base)
        self._error += self._squares(decoded, trained)
        self._largest = max(self._largest, math.sqrt(self._buffer[: trained.size].max()))

    @property
    def norm(self) -> float:
        """L2 norm of (decoded - base); infinite when a decoded value is not finite."""
        return math.sqrt(self._decoded) if math.isfinite(self._decoded) else math.inf

    def loss(self, ratio: float) -> Loss:
        """What was lost so far."""
        relative = math.sqrt(self._error / self._trained) if self._trained else 0.0
        return Loss(self._largest, math.sqrt(self._error / max(self._weights, 1)), relative, ratio)

    def _squares(self, values: Array, others: Array) -> float:
        """Sum of (values - others)², which stay in the buffer; not by BLAS, whose order depends on its threads."""
        squares = self._buffer[: values.size]
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(squares, values)
            squares -= others
            np.square(squares, out=squares)
            return float(squares.sum())
