"""The players' learning rates, step by step: as the experiment says, halved with each return, falling towards the end.

A GAN does not settle: at a constant rate both players go on circling, the faster the larger their steps, and Muon's never
become smaller by themselves. What falls is told by the step of the whole training, so that it does not matter into how many
rounds, attempts or processes that is cut.
"""

from __future__ import annotations

from histofed.training.contest import Contest
from histofed.training.muon import MuonAdam
from histofed.training.rules import Rules


def rates_of(contest: Contest) -> dict[str, float]:
    """By name, as they are now: `generator`, `discriminator`, and `muon` where Muon moves a part of the generator."""
    generator, discriminator = contest.generator_adam, contest.discriminator_adam
    found = {"generator": generator.param_groups[0]["lr"], "discriminator": discriminator.param_groups[0]["lr"]}
    return found | ({"muon": generator.param_groups[1]["lr"]} if isinstance(generator, MuonAdam) else {})


class Rates:
    """Of one task. Make it before any step: the rates that the optimisers have then are the experiment's."""

    def __init__(self, contest: Contest, rules: Rules) -> None:
        optimisers = (contest.generator_adam, contest.discriminator_adam)
        self._own = [(group, float(group["lr"])) for optimiser in optimisers for group in optimiser.param_groups]
        self._rules = rules

    def set(self, step: int, returns: int) -> None:
        """For the task's step number `step`, from 0 on, after so many returns from a divergence."""
        share = 0.5**returns * self._remaining(step)
        for group, rate in self._own:
            group["lr"] = rate * share

    def _remaining(self, step: int) -> float:
        decay = self._rules.decay
        beyond = self._rules.steps_before + step - decay.after if decay is not None else 0
        return 0.5 ** (beyond / decay.half_life) if decay is not None and beyond > 0 else 1.0
