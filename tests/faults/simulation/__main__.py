"""`python -m tests.faults.simulation --seeds 1-500`: run seeds, print how fast, and how to repeat the ones that fail."""

from __future__ import annotations

import argparse
import atexit
import functools
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
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


def main() -> int:
    """Run the seeds. Returns 1 when one of them failed."""
    asked = _arguments()
    began = time.monotonic()
    failed = rounds = 0
    processor_s = 0.0
    for report in _reports(asked.seeds, asked.jobs, asked.verbose):
        failed += bool(report.problems)
        rounds += report.rounds
        processor_s += report.processor_s
        if report.problems or asked.verbose:
            _tell(report)
    wall_s = time.monotonic() - began
    print(
        f"{len(asked.seeds)} seeds, {failed} failed; {rounds} rounds in {wall_s:.1f} s with {asked.jobs} processes: "
        f"{rounds / wall_s * 60:.0f} a minute ({rounds / processor_s * 60:.0f} a minute of one processor)"
    )
    return int(failed > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=range(1, 21), metavar="N[-M]", help="default: 1-20")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; default: one per core"
    )
    parser.add_argument("--verbose", action="store_true", help="what each seed did, and what the daemons log")
    return parser.parse_args()


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} holds no seed; write 7 or 1-500")
    return found


def _reports(seeds: Sequence[int], jobs: int, verbose: bool) -> Iterator[Report]:
    """The seeds' reports, in their order."""
    run = functools.partial(_run, verbose=verbose)
    if min(jobs, len(seeds)) <= 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(min(jobs, len(seeds)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, seeds)


def _run(seed: int, verbose: bool) -> Report:
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


def _tell(report: Report) -> None:
    print(report.words)
    for problem in report.problems:
        print(f"  {problem}")
    if report.problems:
        print(f"  repeat it: python -m tests.faults.simulation --seeds {report.seed} --verbose", flush=True)


if __name__ == "__main__":
    sys.exit(main())
