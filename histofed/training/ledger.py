"""The losses of a run and fp16's scales: read from the device, summed up, and judged. Called by `loop.train` alone.

Reading a number from a GPU makes the host wait until the GPU has done everything before it. So losses are noted step by step
and read together, after a fixed number of steps and before anything is kept or told. When one of them shows that training
diverged, that step is named however late it was read: what a run does is the same, whenever its losses are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from histofed.training.checkpoint import Checkpoint
from histofed.training.contest import LEAST_SCALE
from histofed.training.rules import Rules

GPU_STEPS: Final = 8
"""Steps between two readings on a GPU; on a CPU the numbers are there anyway."""


@dataclass(frozen=True)
class Fault:
    """A loss or a scale that shows that training diverged."""

    sentence: str
    step: int
    """Steps that were done before the one it came from."""


class Ledger:
    """Sums and counts of each loss over the steps read so far, and the latest of each."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._noted: list[tuple[int, Mapping[str, Tensor], Mapping[str, Tensor]]] = []
        self.sums, self.counts = Counter[str](), Counter[str]()
        self.latest: dict[str, float] = {}

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Take over what was summed up to there; what is noted and not read is forgotten."""
        self.sums, self.counts = Counter(checkpoint.sums), Counter(checkpoint.counts)
        self._noted.clear()

    def note(self, step: int, losses: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> None:
        """The losses, detached, of the step after `step` steps, and fp16's scale of each player's after it."""
        self._noted.append((step, losses, scales))

    def read(self) -> Fault | None:
        """Read all that was noted, in order, up to the first loss or scale that is a fault."""
        if not self._noted:
            return None
        values = iter(torch.stack([one for _, *pair in self._noted for named in pair for one in named.values()]).tolist())
        noted, self._noted = self._noted, []
        for step, losses, scales in noted:
            found: dict[str, float] = {name: next(values) for name in losses}
            scaled: dict[str, float] = {name: next(values) for name in scales}
            if sentence := _fault(found, self._rules) or _overflow(scaled):
                return Fault(sentence, step)
            self.sums.update(found)
            self.counts.update(found.keys())
            self.latest |= found
        return None

    def means(self) -> dict[str, float]:
        """Of each loss, over the steps that had it."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def _fault(losses: Mapping[str, float], rules: Rules) -> str:
    """Which loss shows that training diverged; empty when none does."""
    for name, value in losses.items():
        if not math.isfinite(value) or (rules.returns is not None and abs(value) > rules.returns.limit):
            return f"{name.replace('_', ' ')} is {value:.6g}"
    return ""


def _overflow(scales: Mapping[str, float]) -> str:
    """Whose steps are all skipped, with losses as finite as ever; empty when nobody's are."""
    for name, scale in scales.items():
        if scale < LEAST_SCALE:
            return f"the {name}'s gradients overflow fp16 at every scale"
    return ""
