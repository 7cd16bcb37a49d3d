"""The optimisers' state as named tensors: what a site keeps to itself between rounds, and what a checkpoint holds.

For each parameter `NAME`: `NAME.exp_avg`, `NAME.exp_avg_sq` and the step counter `NAME.step`; of one that Muon moves
`NAME.momentum`. Names, not positions: torch's own `state_dict` numbers parameters by their order of registration, which
changes silently when a network is edited.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from histofed.base.errors import BadData
from histofed.training.muon import MuonAdam

_COUNTER = "step"
_ADAM = (_COUNTER, "exp_avg", "exp_avg_sq")
_MUON = ("momentum",)


def adam_state(network: nn.Module, adam: torch.optim.Adam) -> dict[str, Tensor]:
    """The moments of every parameter that has taken a step."""
    parts = _parts_by_name(network, adam)
    return {
        f"{name}.{part}": adam.state[parameter][part]
        for name, parameter in network.named_parameters()
        if parameter in adam.state
        for part in parts[name]
    }


def load_adam_state(network: nn.Module, adam: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `adam_state`. Raises `BadData` when the tensors belong to another network."""
    parameters, parts = dict(network.named_parameters()), _parts_by_name(network, adam)
    known = {f"{name}.{part}" for name in parameters for part in parts[name]}
    owners = {key.rpartition(".")[0] for key in tensors}
    complete = {f"{name}.{part}" for name in owners for part in parts.get(name, _ADAM)}
    if tensors.keys() != complete or not complete <= known:
        raise BadData(
            "the optimiser's state belongs to another network, or another optimiser; start the site's private state afresh"
        )
    for name in owners:
        parameter = parameters[name]
        state = {part: tensors[f"{name}.{part}"] for part in parts[name]}
        moments = {part: tensor for part, tensor in state.items() if part != _COUNTER}
        if any(tensor.shape != parameter.shape for tensor in moments.values()):
            raise BadData(
                "the optimiser's state belongs to a network of another size; start the site's private state afresh"
            )
        # like the parameter, memory format included, or every step would pay a conversion
        adam.state[parameter] = {part: torch.empty_like(parameter).copy_(tensor) for part, tensor in moments.items()}
        if _COUNTER in state:
            counter = state[_COUNTER]
            adam.state[parameter][_COUNTER] = counter.to(parameter.device) if adam.defaults["fused"] else counter


def _parts_by_name(network: nn.Module, adam: torch.optim.Adam) -> dict[str, tuple[str, ...]]:
    """Which tensors the optimiser keeps for each parameter."""
    matrices = {id(matrix) for matrix in adam.matrices} if isinstance(adam, MuonAdam) else set()
    return {name: _MUON if id(parameter) in matrices else _ADAM for name, parameter in network.named_parameters()}
