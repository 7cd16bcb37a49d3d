"""What a step of Muon costs for the generator `deep` at 64 px, as a ratio to torch's own `torch.optim.Muon`.

    .venv/bin/python -m bench.muon [--turns 15] [--json FILE]

Both move the same matrices (torch's takes none with more than two dimensions, so it is given flattened ones) on one thread;
turns are interleaved and the median of the ratios of neighbours is taken. torch's computes in bfloat16, ours in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bench.result import Result, at_most, hand_over
from histofed.models.registry import build_generator
from histofed.training.muon import MuonAdam, matrices_of

COMMAND = "python -m bench.muon"
TARGET = 1.0


def measure(turns: int) -> list[Result]:
    """CPU seconds of one step of each."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    generator = build_generator("deep", 64, 2, 100)
    ours = MuonAdam(generator, 1e-3, (0.5, 0.99), 8e-3)
    gradients = [torch.randn_like(matrix) for matrix in matrices_of(generator)]
    flat = [nn.Parameter(matrix.detach().flatten(1).clone()) for matrix in matrices_of(generator)]
    theirs = torch.optim.Muon(flat, lr=8e-3, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw")

    def our_step() -> None:
        for matrix, gradient in zip(ours.matrices, gradients, strict=True):
            matrix.grad = gradient
        ours.step()

    def their_step() -> None:
        for matrix, gradient in zip(flat, gradients, strict=True):
            matrix.grad = gradient.flatten(1)
        theirs.step()

    pairs = [(_seconds(our_step), _seconds(their_step)) for _ in range(turns + 1)][1:]
    ratio = statistics.median(one / other for one, other in pairs)
    baseline = statistics.median(other for _, other in pairs)
    return [at_most("Muon, a step / torch's", ratio, "x", TARGET, COMMAND, baseline)]


def _seconds(step: Callable[[], None]) -> float:
    begin = time.process_time()
    step()
    return time.process_time() - begin


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(description="Cost of a step of Muon.")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hand_over(measure(options.turns), options.json)


if __name__ == "__main__":
    main()
