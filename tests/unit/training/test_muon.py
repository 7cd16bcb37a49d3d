"""Muon: steps along orthogonal matrices, beside Adam's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from histofed.models.registry import build_generator
from histofed.training.muon import MuonAdam, matrices_of, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8), (1, 5)])
def test_what_comes_out_is_the_nearest_orthogonal_matrix(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    given = torch.randn(shape)
    u, _, vt = torch.linalg.svd(given, full_matrices=False)
    assert (torch.linalg.svdvals(orthogonal(given)) - 1).abs().max() < 0.2
    assert (orthogonal(given) - u @ vt).norm() < 0.2 * vt.norm()


def test_directions_that_differ_by_a_hundred_end_alike() -> None:
    torch.manual_seed(2)
    q, _ = torch.linalg.qr(torch.randn(64, 32))
    given = q @ torch.diag(torch.logspace(0, -2, 32))
    lengths = torch.linalg.svdvals(orthogonal(given))
    assert lengths.min() > 0.7 and lengths.max() < 1.2


def test_the_size_of_the_gradient_does_not_count() -> None:
    torch.manual_seed(3)
    given = torch.randn(6, 9)
    torch.testing.assert_close(orthogonal(given * 1e-6), orthogonal(given), rtol=1e-4, atol=1e-5)
    assert orthogonal(torch.zeros(3, 4)).equal(torch.zeros(3, 4))


def test_a_layer_that_no_gradient_reaches_comes_to_rest() -> None:
    assert orthogonal(torch.full((6, 9), 1e-24)).norm() < 1e-6
    network, optimiser = _pair()
    torch.autograd.backward(_loss(network) * 1e-4)
    for _ in range(600):
        optimiser.step()
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
    before = [parameter.clone() for parameter in network.parameters()]
    optimiser.step()
    for parameter, old in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old, rtol=0, atol=1e-6)


def test_the_last_layer_and_what_is_no_matrix_are_adams() -> None:
    generator = build_generator("deep", 32, 2, 8)
    named = {id(parameter): name for name, parameter in generator.named_parameters()}
    matrices = {named[id(one)] for one in matrices_of(generator)}
    assert {"linear.weight", "detail.weight", "blocks.0.conv1.weight", "blocks.0.norm1.scale_shift.weight"} <= matrices
    assert not matrices & {"to_rgb.weight", "class_vector.weight", "class_map.weight", "linear.bias"}


def _pair() -> tuple[nn.Module, MuonAdam]:
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 4, 5), nn.Linear(5, 2))
    return network, MuonAdam(network, 1e-3, (0.5, 0.99), 1e-2)


def _loss(network: nn.Module) -> Tensor:
    out: Tensor = network(torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4))
    return out.square().sum()


def test_a_step_has_the_size_of_adams_and_no_gradient_is_left_of_a_matrix() -> None:
    network, optimiser = _pair()
    before = [parameter.clone() for parameter in network.parameters()]
    torch.autograd.backward(_loss(network))
    optimiser.step()
    moved = {name: (p - old).detach() for (name, p), old in zip(network.named_parameters(), before, strict=True)}
    for name in ("0.weight", "2.weight"):
        matrix = moved[name].flatten(1)
        # every direction is as long as the others, and the root mean square that of .2 times the rate
        full = min(matrix.shape)
        rank = int((torch.linalg.svdvals(matrix) > 0.5 * torch.linalg.svdvals(matrix)[0]).sum())
        assert matrix.square().mean().sqrt() == pytest.approx(0.2 * 1e-2 * (rank / full) ** 0.5, rel=0.35)
    torch.testing.assert_close(moved["3.weight"].abs(), torch.full((2, 5), 1e-3), rtol=0.01, atol=0)
    assert network.get_parameter("0.weight").grad is None and network.get_parameter("3.weight").grad is not None


def test_it_goes_down() -> None:
    network, optimiser = _pair()
    first = _loss(network).item()
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(_loss(network))
        optimiser.step()
    assert _loss(network).item() < 0.05 * first


def test_fp16s_scale_does_not_reach_the_weights_and_an_overflow_is_skipped() -> None:
    (plain, optimiser), (scaled, other) = _pair(), _pair()
    torch.autograd.backward(_loss(plain))
    optimiser.step()
    scaler = GradScaler("cpu", init_scale=2.0**10)
    torch.autograd.backward(scaler.scale(_loss(scaled)))
    scaler.step(other)
    scaler.update()
    for one, two in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    kept = [parameter.clone() for parameter in scaled.parameters()]
    other.zero_grad()
    torch.autograd.backward(scaler.scale(_loss(scaled) * float("inf")))
    scaler.step(other)
    scaler.update()
    assert all(torch.equal(one, two) for one, two in zip(scaled.parameters(), kept, strict=True))
