"""Adam's moments under names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from histofed.base.errors import BadData
from histofed.training.muon import MuonAdam
from histofed.training.optimiser_state import adam_state, load_adam_state


def _by_muon(steps: int) -> tuple[nn.Module, MuonAdam]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = MuonAdam(network, 0.01, (0.5, 0.99), 0.1)
    for step in range(steps):
        _take_step(network, optimiser, float(step + 1))
    return network, optimiser


def _take_step(network: nn.Module, optimiser: torch.optim.Adam, value: float) -> None:
    optimiser.zero_grad()
    torch.autograd.backward(network(torch.linspace(-value, value, 32).view(1, 2, 4, 4)).square().sum())
    optimiser.step()


def _trained(fused: bool, steps: int = 3) -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    adam = torch.optim.Adam(network.parameters(), 0.1, fused=fused)
    for step in range(steps):
        adam.zero_grad()
        torch.autograd.backward(network(torch.full((1, 4), float(step + 1))).sum())
        adam.step()
    return network, adam


@pytest.mark.parametrize("fused", [False, True])
def test_a_loaded_optimiser_takes_the_same_next_step(fused: bool) -> None:
    network, adam = _trained(fused)
    state = {name: tensor.clone() for name, tensor in adam_state(network, adam).items()}
    assert state["weight.step"] == 3
    copy = nn.Linear(4, 2)
    copy.load_state_dict(network.state_dict())
    other = torch.optim.Adam(copy.parameters(), 0.1, fused=fused)
    load_adam_state(copy, other, state)
    for one, optimiser in ((network, adam), (copy, other)):
        optimiser.zero_grad()
        torch.autograd.backward(one(torch.ones(1, 4)).sum())
        optimiser.step()
    assert torch.equal(network.get_parameter("weight"), copy.get_parameter("weight"))


def test_muons_momentum_is_kept_beside_adams_moments() -> None:
    network, optimiser = _by_muon(3)
    state = {name: tensor.clone() for name, tensor in adam_state(network, optimiser).items()}
    assert {"0.weight.momentum", "0.bias.exp_avg", "1.weight.exp_avg_sq"} <= state.keys()
    assert not {"0.weight.exp_avg", "1.weight.momentum"} & state.keys()
    copy, other = _by_muon(0)
    copy.load_state_dict(network.state_dict())
    load_adam_state(copy, other, state)
    for one, each in ((network, optimiser), (copy, other)):
        _take_step(one, each, 4.0)
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), copy.parameters(), strict=True))


def test_the_state_of_another_optimiser_is_refused() -> None:
    network, optimiser = _by_muon(1)
    adam = torch.optim.Adam(network.parameters(), 0.1, fused=True)
    with pytest.raises(BadData, match="another optimiser"):
        load_adam_state(network, adam, adam_state(network, optimiser))
    _take_step(network, adam, 1.0)
    with pytest.raises(BadData, match="another optimiser"):
        load_adam_state(network, optimiser, adam_state(network, adam))


def test_before_the_first_step_there_is_nothing() -> None:
    assert adam_state(*_trained(True, steps=0)) == {}


def test_the_state_of_another_network_is_refused() -> None:
    network, adam = _trained(True)
    state = adam_state(network, adam)
    with pytest.raises(BadData, match="another network"):
        load_adam_state(network, adam, {f"other.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(BadData, match="another network"):
        load_adam_state(network, adam, {name: tensor for name, tensor in state.items() if name != "bias.step"})
    with pytest.raises(BadData, match="another size"):
        load_adam_state(nn.Linear(5, 2), adam, state)
