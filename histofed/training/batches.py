"""Which tiles form the batch of a step: a pure function of (seed, step), so a resumed run has no position to restore.

Tiles that fit beside the networks lie in the GPU's memory and are picked and turned there; of others the batch travels
while the GPU still works on the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from histofed.training.moving import onto

RESIDENT_SHARE: Final = 0.25
"""Of the GPU's free memory that the tiles may take: networks, moments and activations need the rest."""
_ORDER, _TURNS = 1, 2
"""Purposes that random numbers are drawn for; each has its own stream."""
_SOME: Final = 5
"""Seed of `Batches.some`."""
_CPU: Final = torch.device("cpu")


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

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        classes: int,
        plan: BatchPlan,
        device: torch.device = _CPU,
    ) -> None:
        self._pixels, self._labels, self._plan, self._device = pixels, labels, plan, device
        self._resident = torch.from_numpy(np.array(pixels)).to(device) if _fits(pixels.nbytes, device) else None
        groups = [np.flatnonzero(labels == k) for k in range(classes)] if plan.balanced else [np.arange(len(labels))]
        self._decks = [Deck(group.astype(np.int64), plan.seed, _ORDER, k) for k, group in enumerate(groups)]

    @property
    def resident(self) -> bool:
        """Whether all tiles lie in the device's own memory."""
        return self._resident is not None

    def some(self, most: int) -> tuple[Tensor, Tensor]:
        """At most so many of the tiles, always the same ones, in shuffled order: uint8 (N, 3, S, S) and labels (N,)."""
        # torch's own generator, because the run's random numbers must not know of it
        chosen = torch.randperm(len(self._labels), generator=torch.Generator().manual_seed(_SOME))[:most].numpy()
        return torch.from_numpy(self._pixels[chosen]), torch.from_numpy(self._labels[chosen])

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
        """The batch of a step, on the device: uint8 (B, 3, S, S) and labels (B,)."""
        indices = self.indices(step)
        if self._resident is None:
            pixels_BCHW = onto(self._device, torch.from_numpy(self._pixels[indices]))
        else:
            pixels_BCHW = self._resident[onto(self._device, torch.from_numpy(indices))]
        if self._plan.flips:
            orientation = np.random.default_rng([self._plan.seed, _TURNS, step]).integers(0, 8, len(indices))
            pixels_BCHW = _turned(pixels_BCHW, onto(self._device, torch.from_numpy(orientation)))
        return pixels_BCHW, onto(self._device, torch.from_numpy(self._labels[indices]))


def _turned(pixels_BCHW: Tensor, orientation_B: Tensor) -> Tensor:
    """Each tile in one of the eight orientations of a square."""
    for bit, axes in enumerate(((3,), (2,))):
        pixels_BCHW = torch.where(_has(orientation_B, bit), pixels_BCHW.flip(axes), pixels_BCHW)
    return torch.where(_has(orientation_B, 2), pixels_BCHW.transpose(2, 3), pixels_BCHW)


def _has(orientation_B: Tensor, bit: int) -> Tensor:
    return (orientation_B >> bit & 1).bool().view(-1, 1, 1, 1)


def _fits(size: int, device: torch.device) -> bool:
    """Whether tiles of `size` bytes may lie on the device; in a CPU's memory they do already."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size <= RESIDENT_SHARE * free
