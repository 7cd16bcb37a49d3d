"""Adam's state as named tensors: what a site keeps to itself between rounds, and what a checkpoint holds.

For each parameter `NAME`: `NAME.exp_avg`, `NAME.exp_avg_sq` and the step counter `NAME.step`. Names, not positions: torch's
own `state_dict` numbers parameters by their order of registration, which changes silently when a network is edited.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from histofed.base.errors import BadData

_PARTS = ("step", "exp_avg", "exp_avg_sq")


def adam_state(network: nn.Module, adam: torch.optim.Adam) -> dict[str, Tensor]:
    """The moments of every parameter that has taken a step."""
    return {
        f"{name}.{part}": adam.state[parameter][part]
        for name, parameter in network.named_parameters()
        if parameter in adam.state
        for part in _PARTS
    }


def load_adam_state(network: nn.Module, adam: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `adam_state`. Raises `BadData` when the tensors belong to another network."""
    parameters = dict(network.named_parameters())
    known = {f"{name}.{part}" for name in parameters for part in _PARTS}
    owners = {key.rpartition(".")[0] for key in tensors}
    complete = {f"{name}.{part}" for name in owners for part in _PARTS}
    if tensors.keys() != complete or not complete <= known:
        raise BadData("the optimiser's state belongs to another network; start the site's private state afresh")
    for name in owners:
        parameter = parameters[name]
        state = {part: tensors[f"{name}.{part}"] for part in _PARTS}
        if any(state[part].shape != parameter.shape for part in _PARTS[1:]):
            raise BadData(
                "the optimiser's state belongs to a network of another size; start the site's private state afresh"
            )
        # like the parameter, memory format included, or every step would pay a conversion
        adam.state[parameter] = {
            "step": state["step"].to(parameter.device) if adam.defaults["fused"] else state["step"],
            **{part: torch.empty_like(parameter).copy_(state[part]) for part in _PARTS[1:]},
        }
