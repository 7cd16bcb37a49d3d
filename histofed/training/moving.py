"""From the host's memory to a device without waiting: a plain copy to a GPU makes the host wait for all that it has ordered.

Called by everything that draws or gathers on the CPU; there the tensor is handed through as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensor on `device`. From pinned memory the copy runs beside the host, in the order of the device's stream."""
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device)
    if tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
