"""One seed of the simulation, in whichever process has a core for it.

Not in `__main__`: a process that is spawned cannot import functions from there.
"""

from __future__ import annotations

import atexit
import functools
import logging
import time
import traceback
from dataclasses import dataclass

from tests.faults.history import check, fingerprint
from tests.faults.simulation.identities import Identities
from tests.faults.simulation.world import simulate


@dataclass(frozen=True)
class Report:
    """One seed."""

    seed: int
    words: str
    problems: tuple[str, ...]
    rounds: int
    processor_s: float


def run_seed(seed: int, verbose: bool) -> Report:
    """Simulate it and judge what happened."""
    logging.basicConfig(level=logging.INFO if verbose else logging.CRITICAL, format="%(name)s: %(message)s")
    identities, began = _identities(), time.process_time()
    outcome = simulate(seed, identities)
    crashes = ("".join(traceback.format_exception(bug)) for bug in outcome.bugs)
    problems = (*map(str, check(outcome.history)), *crashes)
    words = (
        f"seed {seed}: {outcome.rounds} rounds, {outcome.lives} lives of the aggregator, {outcome.messages} messages, "
        f"{outcome.virtual_s:.0f} virtual seconds, digest {fingerprint(outcome.history)[:16]}"
    )
    return Report(seed, words, problems, outcome.rounds, time.process_time() - began)


@functools.cache
def _identities() -> Identities:
    """Made once per process."""
    made = Identities()
    atexit.register(made.close)
    return made
