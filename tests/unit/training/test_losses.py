"""ACGAN's losses against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from histofed.training.losses import discriminator_loss, generator_loss

LN2 = math.log(2)


def test_ignorance_costs_what_the_formula_says() -> None:
    nothing, no_class, labels = torch.zeros(4), torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    assert generator_loss(nothing, no_class, labels).item() == pytest.approx(0.5 * (LN2 + LN2))
    assert discriminator_loss(nothing, no_class, labels, nothing).item() == pytest.approx(0.5 * (LN2 + 0.5 * LN2))


def test_confidence_in_the_right_class_is_not_bounded_away_from_zero() -> None:
    """With softmax before cross-entropy the class loss could not fall below .313."""
    sure = torch.tensor([[40.0, -40.0]])
    assert generator_loss(torch.tensor([40.0]), sure, torch.tensor([0])).item() == pytest.approx(0, abs=1e-6)
    assert generator_loss(torch.tensor([40.0]), sure, torch.tensor([1])).item() == pytest.approx(40, abs=1e-3)


def test_each_player_wants_the_opposite() -> None:
    no_class, label = torch.zeros(1, 2), torch.tensor([0])

    def slope(of: Tensor, loss: Tensor) -> float:
        return float(torch.autograd.grad(loss, of)[0].sum())

    validity = torch.zeros(1, requires_grad=True)
    assert slope(validity, generator_loss(validity, no_class, label)) < 0
    assert slope(validity, discriminator_loss(torch.zeros(1), no_class, label, validity)) > 0
    assert slope(validity, discriminator_loss(validity, no_class, label, torch.zeros(1))) < 0
