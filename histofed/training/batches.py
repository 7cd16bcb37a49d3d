"""Which tiles form the batch of a step: a pure function of (seed, step), so a resumed run has no position to restore."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ORDER, _TURNS = 1, 2
"""Purposes that random numbers are drawn for; each has its own stream."""


class Deck:
    """Cards dealt in shuffled order for ever: every card once before any card again."""

    def __init__(self, cards: npt.NDArray[np.int64], *seeds: int) -> None:
        self._cards, self._seeds = cards, seeds
        self._shuffle = -1, cards

    def deal(self, begin: int, count: int) -> npt.NDArray[np.int64]:
        """Cards at positions begin .. begin + count - 1 of the endless order."""
        return np.array([self._card(position) for position in range(begin, begin + count)], np.int64)

    def _card(self, position: int) -> np.int64:
        shuffle, place = divmod(position, len(self._cards))
        if shuffle != self._shuffle[0]:
            self._shuffle = shuffle, np.random.default_rng([*self._seeds, shuffle]).permutation(self._cards)
        card: np.int64 = self._shuffle[1][place]
        return card


@dataclass(frozen=True)
class BatchPlan:
    """How batches are formed."""

    size: int
    seed: int
    balanced: bool
    """Classes take turns, so each fills an equal share of every batch; otherwise tiles come in shuffled order."""
    flips: bool
    """Each tile in one of its eight orientations: tissue has no up and no left."""


class Batches:
    """Batches from decoded tiles (N, 3, S, S) with labels (N,)."""

    def __init__(self, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], classes: int, plan: BatchPlan) -> None:
        self._pixels, self._labels, self._plan = pixels, labels, plan
        groups = [np.flatnonzero(labels == k) for k in range(classes)] if plan.balanced else [np.arange(len(labels))]
        self._decks = [Deck(group.astype(np.int64), plan.seed, _ORDER, k) for k, group in enumerate(groups)]

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """The tiles of a step's batch, (B,)."""
        slots = np.arange(step * self._plan.size, (step + 1) * self._plan.size)
        chosen = np.empty(len(slots), np.int64)
        for k, deck in enumerate(self._decks):
            mine = slots[slots % len(self._decks) == k] // len(self._decks)
            if len(mine):
                chosen[slots % len(self._decks) == k] = deck.deal(int(mine[0]), len(mine))
        return chosen

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: uint8 (B, 3, S, S) and labels (B,)."""
        indices = self.indices(step)
        pixels = self._pixels[indices]
        if self._plan.flips:
            _turn(pixels, np.random.default_rng([self._plan.seed, _TURNS, step]).integers(0, 8, len(indices)))
        return torch.from_numpy(pixels), torch.from_numpy(self._labels[indices])


def _turn(pixels: npt.NDArray[np.uint8], orientation: npt.NDArray[np.int64]) -> None:
    """Bring each tile into one of the eight orientations of a square, in place."""
    mirrored, upside_down, transposed = ((orientation >> bit & 1).astype(bool) for bit in range(3))
    pixels[mirrored] = pixels[mirrored][..., ::-1]
    pixels[upside_down] = pixels[upside_down][..., ::-1, :]
    pixels[transposed] = pixels[transposed].swapaxes(-1, -2)
