"""Between torch's tensors and the arrays that `histofed.weights` stores: copies, on the CPU, under prefixed names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from histofed.weights import Array


def to_arrays(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Array]:
    """Tensors of any device and memory format as contiguous arrays named `prefix + name`; independent copies."""
    return {prefix + name: _array(tensor) for name, tensor in tensors.items()}


def with_prefix(arrays: Mapping[str, Array], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it; independent copies."""
    return {
        name.removeprefix(prefix): torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _array(tensor: Tensor) -> Array:
    # order="C" matters: a channels-last tensor would keep its strides, and its bytes another order
    return np.array(tensor.detach().cpu().numpy(), order="C")
