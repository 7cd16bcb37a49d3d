"""`python -m tests.faults.simulation --seeds 1-500`: run seeds, print how fast, and how to repeat the ones that fail."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.faults.runs.seeds import parse
from tests.faults.simulation.seed import Report, run_seed


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
    parser.add_argument("--seeds", type=_seeds, default=range(1, 21), metavar="N[-M],..", help="default: 1-20")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; default: one per core"
    )
    parser.add_argument("--verbose", action="store_true", help="what each seed did, and what the daemons log")
    return parser.parse_args()


def _seeds(text: str) -> list[int]:
    try:
        found = parse(text)
    except ValueError:
        found = []
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} holds no seed; write 7, 1-500 or 1-12,86")
    return found


def _reports(seeds: Sequence[int], jobs: int, verbose: bool) -> Iterator[Report]:
    """The seeds' reports, in their order."""
    run = functools.partial(run_seed, verbose=verbose)
    if min(jobs, len(seeds)) <= 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(min(jobs, len(seeds)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, seeds)


def _tell(report: Report) -> None:
    print(report.words)
    for problem in report.problems:
        print(f"  {problem}")
    if report.problems:
        print(f"  repeat it: python -m tests.faults.simulation --seeds {report.seed} --verbose", flush=True)


if __name__ == "__main__":
    sys.exit(main())
