"""Norms of a discriminator, after it was built: batch norm found or replaced, spectral norm laid over its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from histofed.base.errors import BadData

GROUPS: Final = 32
"""Of a group norm (Wu and He, arXiv 1803.08494), where the channels can be divided so; fewer where they cannot."""


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """A group norm over `channels`: statistics of one image alone, whatever else is in its batch."""
    return nn.GroupNorm(groups_of(channels), channels, affine=affine)


def groups_of(channels: int) -> int:
    """Into how many groups they are divided."""
    return math.gcd(GROUPS, channels)


def has_batch_norm(network: nn.Module) -> bool:
    """Whether, as the network stands (training or not), the answer to one image depends on the others of its batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in network.modules())


def has_attention(network: nn.Module) -> bool:
    """Whether the network is a transformer, or partly one."""
    return any("Attention" in type(module).__name__ for module in network.modules())


def replace_batch_norm(network: nn.Module, name: str) -> None:
    """Put a group norm in the place of every batch norm, in place. Raises `BadData` for one that is not two-dimensional."""
    for parent in list(network.modules()):
        for place, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                norm = group_norm(child.num_features)
                # timm's variant applies its activation too
                rest = [after for kind in ("drop", "act") if isinstance(after := getattr(child, kind, None), nn.Module)]
                parent.register_module(place, nn.Sequential(norm, *rest) if rest else norm)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        raise BadData(
            f"discriminator {name!r} has batch norm in places where no group norm can stand for it; "
            'leave norm = "own", or choose another network'
        )


def add_spectral_norm(network: nn.Module, name: str) -> None:
    """Divide each convolution's and linear layer's weight by its largest singular value (Miyato et al., arXiv 1802.05957).

    Raises `BadData` for a network with attention, where it fails: it takes away the scale that attention learns through
    (ViTGAN, arXiv 2107.04589, §4.1).
    """
    if has_attention(network):
        raise BadData(f"spectral norm fails on transformers such as {name!r}; switch it off, or choose 'cnn' or a ResNet")
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parametrizations.spectral_norm(module)


@contextmanager
def spectral_norm_held(network: nn.Module, held: bool = True) -> Iterator[None]:
    """One power iteration now and none inside, however often the network is asked; nothing when it is not `held`.

    Otherwise each forward pass takes one, so that a weight would depend on the parts that a batch passes through in.
    """
    norms = [(owner, one) for owner in network.modules() if held and (one := _spectral_norm_of(owner)) is not None]
    with torch.no_grad():
        for owner, _ in norms:
            _ = owner.weight  # computing it moves the iteration on
    for _, norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for _, norm in norms:
            norm.train()


def _spectral_norm_of(owner: nn.Module) -> nn.Module | None:
    if not parametrize.is_parametrized(owner, "weight"):
        return None
    found: nn.Module = owner.get_submodule("parametrizations.weight.0")
    return found
