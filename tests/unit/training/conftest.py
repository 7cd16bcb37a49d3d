"""A small contest and batches for this folder's tests; the process is set up as a trainer's is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from histofed.models.registry import build_discriminator, build_generator
from histofed.training.batches import Batches, BatchPlan
from histofed.training.loop import Contest
from histofed.training.runtime import prepare

MakeContest = Callable[..., Contest]


@pytest.fixture
def make_contest() -> MakeContest:
    def make(seed: int = 1, discriminator: str = "cnn", rate: float = 2e-4) -> Contest:
        device = prepare("cpu", 1, seed)
        players = build_generator("paper-cnn", 32, 2, 8), build_discriminator(discriminator, 32, 2)
        adams = [torch.optim.Adam(player.parameters(), rate, (0.5, 0.999), fused=True) for player in players]
        return Contest(players[0], players[1], adams[0], adams[1], device)

    return make


@pytest.fixture
def batches() -> Batches:
    """Two classes that differ in colour, 11 tiles."""
    labels = np.array([0] * 5 + [1] * 6)
    pixels = np.random.default_rng(0).integers(0, 120, (11, 3, 32, 32), np.uint8)
    pixels[5:, 0] += 120
    return Batches(pixels, labels, 2, BatchPlan(size=4, seed=3, balanced=True, flips=True))
