"""`torch.compile` where it works here, and a sentence where it does not. Called by the workshop before training."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn


def compile_in_place(network: nn.Module, example: Callable[[], Tensor]) -> str:
    """Compile the network's forward and try it, there and back; empty, or why it runs as written instead.

    `example` calls the network with inputs as they will come and gives a number to differentiate. The trial leaves no
    trace: weights, statistics, gradients and random numbers are as before. Compilers fail in many ways (no C++ compiler, an
    operator or a processor that they do not know), none of which is a reason not to train; so every error counts.
    """
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    devices = {parameter.device for parameter in network.parameters() if parameter.device.type == "cuda"}
    reason = ""
    try:
        with torch.random.fork_rng(list(devices)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own modules use what torch itself calls deprecated
            network.compile()
            torch.autograd.backward(example())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # said to the caller, who reports it
        network._compiled_call_impl = None  # torch has no public way to undo `compile`
        reason = f"torch.compile does not work here ({type(error).__name__}), so the network runs as it is written"
    network.zero_grad()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(before[name])
    return reason
