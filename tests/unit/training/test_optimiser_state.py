"""Adam's moments under names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from histofed.base.errors import BadData
from histofed.training.optimiser_state import adam_state, load_adam_state


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
