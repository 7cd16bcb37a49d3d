"""What can be chosen about a discriminator besides its name; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DiscriminatorOptions:
    """Data; `registry.build_discriminator` refuses what a network cannot do."""

    heads: str = "class"
    """`class`, `projection` or `reacgan` (`models/heads.py`)."""
    frozen_trunk: bool = False
    """Keep the trunk as its weights file has it, in evaluation mode, and train the heads alone."""
    norm: str = "own"
    """`own`: as the network comes; `group`: group norm in the place of batch norm; `none` (only `cnn`)."""
    spectral_norm: bool = False
    """Of every convolution and linear layer; not for transformers."""
    dropout: float = 0.25
    """Of `cnn`'s channels; other networks have their own."""
    batch_deviation: bool = False
    """Show the heads how much the batch varies (`models/deviation.py`)."""
