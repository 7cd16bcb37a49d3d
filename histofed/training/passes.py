"""One pass through a network, as a step makes it: precision, augmentation, whose weights are to learn.

Apart from the step, because the trial of a compiler must make the same passes: compiled code is for one precision, one
size, one layout in memory and one answer to the question where a gradient is wanted. Called by `step.py` and `compiling.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from histofed.models.networks import Judgement
from histofed.training.augment import augment
from histofed.training.contest import Contest
from histofed.training.deal import Deal
from histofed.training.losses import judged
from histofed.training.rules import Rules

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Fakes:
    """Augmented fakes; attached to the generator where it moves."""

    seen_BCHW: Tensor
    asked_B: Tensor


def drawn_by(contest: Contest, rules: Rules, part: Deal) -> Tensor:
    """Fakes as the generator draws them, (B, 3, S, S) in float32."""
    with _autocast(contest, rules):
        fake_BCHW: Tensor = contest.generator(part.z_BZ, part.asked_B)
    return fake_BCHW.float()


def seen(drawn_BCHW: Tensor, rules: Rules, part: Deal) -> Fakes:
    """Fakes as the discriminator will see them."""
    return Fakes(augment(drawn_BCHW, rules.augmentation), part.asked_B)


def look(contest: Contest, rules: Rules, images_BCHW: Tensor, again: bool = False) -> Judgement:
    """The discriminator's judgement; `again` for one whose gradient will be differentiated again.

    That needs the network as it was written, because compiled code has no second derivative, and more than fp16's range.
    """
    network = contest.discriminator
    with _autocast(contest, rules, enabled=not (again and rules.precision == "fp16")):
        answer: Judgement = network.forward(images_BCHW) if again else network(images_BCHW)
    return answer


def real_logits(contest: Contest, rules: Rules, part: Deal) -> Tensor | None:
    """What a relativistic generator is compared with."""
    if rules.objective.loss != "relativistic":
        return None
    with torch.no_grad():
        real_BCHW = augment(part.real_BCHW, rules.augmentation)
        return judged(look(contest, rules, real_BCHW), part.labels_B, rules)


@contextmanager
def weights_held(network: nn.Module) -> Iterator[None]:
    """No gradient of the network's weights inside: the other player's move needs none."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def _autocast(contest: Contest, rules: Rules, enabled: bool = True) -> torch.autocast:
    return torch.autocast(
        contest.device.type,
        _DTYPES.get(rules.precision, torch.bfloat16),
        enabled=enabled and rules.precision in _DTYPES,
        # a cached cast of a weight would be taken from one move into the next, whose gradients it does not carry
        cache_enabled=False,
    )
