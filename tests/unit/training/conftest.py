"""A small contest and batches for this folder's tests; the process is set up as a trainer's is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.amp import GradScaler

from histofed.models.options import DiscriminatorOptions
from histofed.models.registry import build_discriminator, build_generator
from histofed.models.torchvision_compat import ensure_torchvision
from histofed.training.batches import Batches, BatchPlan
from histofed.training.contest import Contest
from histofed.training.ema import Ema
from histofed.training.rules import Rules
from histofed.training.runtime import prepare

MakeContest = Callable[..., Contest]
SWIN = "tiny_swin_of_the_tests"
_once = threading.Lock()


def _register_swin() -> None:
    """timm has no Swin that two cores train in a second, so the tests register one under its own name."""
    ensure_torchvision()
    import timm
    from timm.models import register_model
    from timm.models.swin_transformer import SwinTransformer

    if timm.is_model(SWIN):
        return

    def tiny_swin_of_the_tests(num_classes: int = 0, **_of_the_factory: object) -> SwinTransformer:
        network = SwinTransformer(
            32, 2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=num_classes
        )
        described: Any = network  # torch knows tensors and modules alone as attributes
        described.pretrained_cfg = {
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        }
        return network

    tiny_swin_of_the_tests.__module__ = __name__
    register_model(tiny_swin_of_the_tests)


@pytest.fixture(scope="session", autouse=True)
def tiny_swin() -> str:
    with _once:
        _register_swin()
    return SWIN


@pytest.fixture
def make_contest() -> MakeContest:
    def make(
        seed: int = 1,
        discriminator: str = "cnn",
        rate: float = 2e-4,
        rules: Rules = Rules(),  # noqa: B008 frozen data
        classes: int = 2,
        generator: str = "paper-cnn",
        ema: float | None = None,
        **options: Any,
    ) -> Contest:
        device = prepare("cpu", 1, seed)
        one = build_generator(generator, 32, classes, 8)
        chosen = DiscriminatorOptions(heads=rules.heads, **options)
        other = build_discriminator(discriminator, 32, classes, options=chosen)
        adams = [torch.optim.Adam(player.parameters(), rate, (0.5, 0.999), fused=True) for player in (one, other)]
        return Contest(
            one,
            other,
            adams[0],
            adams[1],
            device,
            ema=Ema(one, ema) if ema is not None else None,
            scalers=(GradScaler("cpu"), GradScaler("cpu")) if rules.precision == "fp16" else None,
        )

    return make


@pytest.fixture
def batches() -> Batches:
    """Two classes that differ in colour, 11 tiles."""
    return make_batches(2)


def make_batches(classes: int, size: int = 4) -> Batches:
    """Some classes that differ in colour, 11 tiles."""
    labels = np.sort((np.arange(11) + 1) % classes)
    pixels = np.random.default_rng(0).integers(0, 120, (11, 3, 32, 32), np.uint8)
    pixels[labels > 0, 0] += 120
    return Batches(pixels, labels, classes, BatchPlan(size=size, seed=3, balanced=True, flips=True))
