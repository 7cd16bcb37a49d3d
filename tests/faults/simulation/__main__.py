"""`python -m tests.faults.simulation --seeds 1-500`: run seeds, print how fast, and how to repeat the ones that fail."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback

from tests.faults.history import check, fingerprint
from tests.faults.simulation.identities import Identities
from tests.faults.simulation.world import Outcome, simulate


def main() -> int:
    """Run the seeds. Returns how many of them failed, at most 1."""
    asked = _arguments()
    logging.basicConfig(level=logging.INFO if asked.verbose else logging.CRITICAL, format="%(name)s: %(message)s")
    identities, failed, rounds = Identities(), 0, 0
    began, computed = time.monotonic(), time.process_time()
    for seed in asked.seeds:
        outcome = simulate(seed, identities)
        problems = _problems(outcome)
        rounds += outcome.rounds
        failed += bool(problems)
        if problems or asked.verbose:
            _tell(seed, outcome, problems)
    identities.close()
    wall, busy = time.monotonic() - began, time.process_time() - computed
    print(
        f"{len(asked.seeds)} seeds, {failed} failed; {rounds} rounds in {wall:.1f} s: {rounds / wall * 60:.0f} a minute"
        f" ({rounds / busy * 60:.0f} a minute of processor time)"
    )
    return min(failed, 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=range(1, 21), metavar="N[-M]", help="default: 1-20")
    parser.add_argument("--verbose", action="store_true", help="what each seed did, and what the daemons log")
    return parser.parse_args()


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} holds no seed; write 7 or 1-500")
    return found


def _problems(outcome: Outcome) -> list[str]:
    crashes = ["".join(traceback.format_exception(bug)) for bug in outcome.bugs]
    return [str(violation) for violation in check(outcome.history)] + crashes


def _tell(seed: int, outcome: Outcome, problems: list[str]) -> None:
    print(
        f"seed {seed}: {outcome.rounds} rounds, {outcome.lives} lives of the aggregator, {outcome.messages} messages, "
        f"{outcome.virtual_s:.0f} virtual seconds, digest {fingerprint(outcome.history)[:16]}"
    )
    for problem in problems:
        print(f"  {problem}")
    if problems:
        print(f"  repeat it: python -m tests.faults.simulation --seeds {seed} --verbose")


if __name__ == "__main__":
    sys.exit(main())
