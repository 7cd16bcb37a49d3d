"""Gradient penalties: values by hand, and their own gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from histofed.models.registry import build_discriminator
from histofed.training.penalties import away_from_one, between, squared_gradient, twice_differentiable


def _images(count: int = 2) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(count, 3, 32, 32).mul(2).sub(1).requires_grad_()


def test_a_linear_critic_is_penalised_by_its_weights() -> None:
    images = _images()
    slope = torch.tensor([0.02, 0.01]).view(2, 1, 1, 1)
    answers = (images * slope).sum((1, 2, 3))
    squares = squared_gradient(answers, images)
    expected = torch.tensor([0.02, 0.01]).square() * 3 * 32 * 32
    torch.testing.assert_close(squares, expected)
    torch.testing.assert_close(away_from_one((images * slope).sum((1, 2, 3)), images), (expected.sqrt() - 1).square())


def test_a_dead_critic_has_a_finite_slope() -> None:
    images, weight = _images(), torch.zeros((), requires_grad=True)
    penalty = away_from_one((images * weight).sum((1, 2, 3)), images).mean()
    torch.autograd.backward(penalty)
    assert penalty.item() == pytest.approx(1, abs=1e-4)
    assert weight.grad is not None
    assert weight.grad.isfinite()


@pytest.mark.parametrize("name", ["vit-mini", "tiny_swin_of_the_tests", "test_vit"])
@pytest.mark.parametrize("penalty", [squared_gradient, away_from_one])
def test_gradients_of_a_penalty_on_a_transformer_match_finite_differences(name: str, penalty: object) -> None:
    assert callable(penalty)
    torch.manual_seed(0)
    network = build_discriminator(name, 32, 2).double().eval()
    images = _images().double().detach().requires_grad_()
    weight = next(parameter for key, parameter in network.named_parameters() if key.endswith("qkv.weight"))

    def value() -> Tensor:
        with twice_differentiable():
            found: Tensor = penalty(network(images).validity_B, images).mean()
        return found

    # the sum over pixels is taken in float32, as in training
    (slope,) = torch.autograd.grad(value(), weight)
    assert slope.abs().max() > 0
    direction = slope / slope.norm()
    with torch.no_grad():
        size = 1e-3
        weight.add_(size * direction)
    above = value().item()
    with torch.no_grad():
        weight.sub_(2 * size * direction)
    below = value().item()
    assert (above - below) / (2 * size) == pytest.approx(slope.norm().item(), rel=2e-2)


def test_fused_attention_alone_could_not() -> None:
    """The reason for `twice_differentiable`, on this machine's kernels."""
    attention = nn.functional.scaled_dot_product_attention
    q = torch.randn(1, 1, 8, 16, requires_grad=True)
    with twice_differentiable():
        (first,) = torch.autograd.grad(attention(q, q, q).sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q)
    assert second.isfinite().all()
    (first,) = torch.autograd.grad(attention(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(first.square().sum(), q)


def test_images_between_reals_and_fakes() -> None:
    real, fake = torch.ones(3, 1, 2, 2), torch.zeros(3, 1, 2, 2)
    mixed = between(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    assert mixed[:, 0, 0, 0].tolist() == [0, 0.25, 1]
    assert mixed.requires_grad
    assert mixed.is_leaf
