"""What every network of the registry looks like from outside, and their common start.

Shape suffixes in this package: B batch, C channels, H and W pixels, K classes, F features, E embedding, Z latent.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Generator(nn.Module, abc.ABC):
    """Noise and a class → a tile."""

    latent: int
    """Length of the noise vector."""
    classes: int
    """Number of classes it can draw."""

    @abc.abstractmethod
    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """z ~ N(0, 1) and class indices → images in [-1, 1], shape (B, 3, W, W)."""


class Judgement(NamedTuple):
    """What a discriminator says about a batch; what each part means is told by its heads (`models/heads.py`)."""

    validity_B: Tensor
    """How real each tile looks, a logit."""
    classes_BK: Tensor
    """Per class: a logit, a projection to add to the validity, or a cosine."""
    embedding_BE: Tensor
    """The vector that the classes were read from."""


class Discriminator(nn.Module, abc.ABC):
    """A tile → how real it looks, and which class it is."""

    frozen: tuple[str, ...] = ()
    """Prefixes of the tensors that are neither trained nor stored nor shared: every machine has them from a local file."""

    @abc.abstractmethod
    def forward(self, images_BCHW: Tensor) -> Judgement:
        """Images in [-1, 1] → a judgement of each."""


def start_as_dcgan(module: nn.Module) -> None:
    """Convolutions N(0, .02), norm weights N(1, .02), norm biases 0 (DCGAN, arXiv 1511.06434 §3); for `Module.apply`."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def floating_state(module: nn.Module) -> dict[str, Tensor]:
    """The floating tensors of a network by name, without a frozen trunk: what may be shared and averaged.

    Batch norm's integer counter `num_batches_tracked` is left out: it only matters where momentum is None, which no
    network here uses, and an average of counters means nothing.
    """
    frozen = module.frozen if isinstance(module, Discriminator) else ()
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not name.startswith(frozen)
    }


def load_floating_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `floating_state`, in place; names and shapes must match exactly (KeyError, ValueError)."""
    own = floating_state(module)
    if own.keys() != tensors.keys():
        raise KeyError(", ".join(sorted(own.keys() ^ tensors.keys())[:3]))
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(tensors[name])
