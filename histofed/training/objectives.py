"""Objectives by name, as data: which loss, which penalties, how often each player moves. No torch here.

The numbers are the sources' own; an experiment may change each. The recipe's configuration checks itself against this table,
and the loop reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Loss = Literal["bce", "wasserstein", "hinge", "relativistic"]
Heads = Literal["class", "projection", "reacgan"]
FakeLabels = Literal["uniform", "even", "real"]


@dataclass(frozen=True)
class Objective:
    """One row. The totals are `scale * (adversarial terms + class term)`."""

    name: str
    source: str
    loss: Loss
    heads: Heads
    """The heads that belong to it; others may be chosen, except where `fixed_heads`."""
    fixed_heads: bool = False
    generator_scale: float = 1.0
    discriminator_scale: float = 1.0
    critic_steps: int = 1
    """The discriminator's steps for each of the generator's."""
    gradient_penalty: float = 0.0
    """λ of (|∇D| - 1)² between reals and fakes."""
    r1: float = 0.0
    """Half of it weighs |∇D|² on reals."""
    r2: float = 0.0
    """The same on fakes."""
    fake_labels: FakeLabels = "uniform"
    """Classes of the fakes: drawn independently, evenly over each batch, or those of the real batch."""

    @property
    def has_level(self) -> bool:
        """Whether a logit means something by itself, rather than only against another one."""
        return self.loss in ("bce", "hinge")

    @property
    def has_penalty(self) -> bool:
        """Whether the discriminator's gradient at each tile is held down: then no batch norm may mix the tiles."""
        return self.gradient_penalty > 0 or self.r1 > 0 or self.r2 > 0


OBJECTIVES: Final[Mapping[str, Objective]] = MappingProxyType(
    {
        one.name: one
        for one in (
            Objective(
                "acgan",
                "Odena et al., arXiv 1610.09585",
                "bce",
                "class",
                fixed_heads=True,
                generator_scale=0.5,
                discriminator_scale=0.25,
            ),
            Objective(
                "cgan",
                "Mirza and Osindero, arXiv 1411.1784, with the projection of Miyato and Koyama, arXiv 1802.05637",
                "bce",
                "projection",
                fixed_heads=True,
                discriminator_scale=0.5,
            ),
            Objective(
                "wgan-gp",
                "Gulrajani et al., arXiv 1704.00028, algorithm 1",
                "wasserstein",
                "class",
                critic_steps=5,
                gradient_penalty=10.0,
                fake_labels="real",
            ),
            Objective("hinge", "Lim and Ye, arXiv 1705.02894; Miyato et al., arXiv 1802.05957", "hinge", "class"),
            Objective(
                "relativistic",
                "R3GAN: Huang et al., arXiv 2501.05441",
                "relativistic",
                "class",
                r1=1.0,
                r2=1.0,
                fake_labels="real",
            ),
        )
    }
)
