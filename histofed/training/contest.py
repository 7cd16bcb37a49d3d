"""The two players, their optimisers, and what else a step changes: all that a checkpoint must hold, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.amp import GradScaler

from histofed.base.errors import BadData
from histofed.models.networks import Discriminator, Generator, floating_state, load_floating_state
from histofed.training.ema import Ema
from histofed.training.optimiser_state import adam_state, load_adam_state
from histofed.training.tensors import to_arrays, with_prefix
from histofed.weights import Array

LEAST_SCALE: Final = 2.0**-10
"""Of fp16's losses, which begin at 2**16: gradients that overflow below it do so at any scale, and no step is ever taken."""


@dataclass
class Anchors:
    """LeCam's running averages of the logits of reals and fakes; empty before the first step."""

    real_fake: Tensor | None = None


@dataclass(frozen=True)
class Contest:
    """The two players and their optimisers; changed in place by training."""

    generator: Generator
    discriminator: Discriminator
    generator_adam: torch.optim.Adam
    discriminator_adam: torch.optim.Adam
    device: torch.device
    ema: Ema | None = None
    anchors: Anchors = field(default_factory=Anchors)
    scalers: tuple[GradScaler, GradScaler] | None = None
    """With fp16: of the generator's and the discriminator's loss."""

    def state(self) -> dict[str, Array]:
        """Everything that a step changes, by name, without the random number generators."""
        extra: dict[str, Tensor] = {}
        if self.anchors.real_fake is not None:
            extra["lecam.anchors"] = self.anchors.real_fake
        if self.scalers is not None:
            found = [one.state_dict() for one in self.scalers]
            extra["scale.losses"] = torch.tensor([[one["scale"], float(one["_growth_tracker"])] for one in found])
        return {
            **to_arrays(floating_state(self.generator), "generator."),
            **to_arrays(floating_state(self.discriminator), "discriminator."),
            **to_arrays(adam_state(self.generator, self.generator_adam), "adam.generator."),
            **to_arrays(adam_state(self.discriminator, self.discriminator_adam), "adam.discriminator."),
            **(to_arrays(floating_state(self.ema.generator), "ema.") if self.ema else {}),
            **to_arrays(extra),
        }

    def scales(self) -> dict[str, Tensor]:
        """With fp16 the scale of each player's loss, copied without waiting for the device; else nothing."""
        if self.scalers is None:
            return {}
        one = torch.ones((), device=self.device)
        return dict(zip(("generator", "discriminator"), (scaler.scale(one) for scaler in self.scalers), strict=True))

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Take over what is there: each of the groups of `state` may be missing as a whole. Raises `BadData`."""
        for name, network in (
            ("generator", self.generator),
            ("discriminator", self.discriminator),
            *((("ema", self.ema.generator),) if self.ema else ()),
        ):
            if found := with_prefix(arrays, f"{name}."):
                try:
                    load_floating_state(network, found)
                except (KeyError, ValueError) as error:
                    raise BadData(f"the weights are not those of this {name}: {error}") from error
        for name, network, adam in (
            ("generator", self.generator, self.generator_adam),
            ("discriminator", self.discriminator, self.discriminator_adam),
        ):
            if moments := with_prefix(arrays, f"adam.{name}."):
                load_adam_state(network, adam, moments)
        if anchors := with_prefix(arrays, "lecam."):
            self.anchors.real_fake = anchors["anchors"].to(self.device)
        if self.scalers is not None and (scales := with_prefix(arrays, "scale.")):
            for one, (scale, good_steps) in zip(self.scalers, scales["losses"].tolist(), strict=True):
                # states may hold a scale that fell to nothing, from when that was no divergence: they begin anew
                if scale >= LEAST_SCALE:
                    one.load_state_dict({**one.state_dict(), "scale": scale, "_growth_tracker": int(good_steps)})

    def restart(self, arrays: Mapping[str, Array]) -> None:
        """Return to a state as a whole: moments and averages that it does not hold yet are forgotten."""
        for adam in (self.generator_adam, self.discriminator_adam):
            adam.state.clear()
        self.anchors.real_fake = None
        self.load(arrays)
