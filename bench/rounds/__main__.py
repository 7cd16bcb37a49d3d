"""Whole rounds through real daemons.

    python -m bench.rounds ours --sites 4 [--size tiny] [--rounds 5]
    python -m bench.rounds memory                      # the aggregator's peak at 2, 8 and 16 sites
    python -m bench.rounds peers --scripts FOLDER --nvflare PYTHON --flower PYTHON [--size tiny]
    python -m bench.rounds duties [--scripts FOLDER]   # what cannot be saved of a round's CPU, alone, beside gRPC's floor
    python -m bench.rounds faults [CASE ...]           # a process dies in mid-round: what becomes of the run

`--json FILE` writes the rows. The peers' scripts and how their environments are made: `docs/results/rounds.md`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from bench.result import Result, at_most, hand_over
from bench.rounds import duties, faults, ours, peers

COMMAND: Final = "python -m bench.rounds"
WALL_TARGETS: Final = {"nvflare": 0.3, "flower": 0.2}
CPU_TARGET_S: Final = 3.0
FIXED_TARGET_S: Final = 0.3
MEMORY_TARGET_MIB: Final = 1229.0
GROWTH_TARGET: Final = 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    kinds = parser.add_subparsers(dest="kind", required=True)
    own, memory, others, least, dying = (kinds.add_parser(name) for name in ("ours", "memory", "peers", "duties", "faults"))
    for one in (own, memory, others, least):
        one.add_argument("--size", choices=sorted(ours.WEIGHTS), default="vit_b16")
    for one in (own, others):
        one.add_argument("--sites", type=int, default=4)
        one.add_argument("--rounds", type=int, default=4)
    memory.add_argument("--sites", type=int, nargs="+", default=[2, 8, 16])
    others.add_argument("--scripts", type=Path, required=True, help="folder of flower_round.py and nvflare_round.py")
    others.add_argument("--nvflare", type=Path, help="Python with nvflare==2.9.0 and torch")
    others.add_argument("--flower", type=Path, help="Python with flwr")
    least.add_argument("--scripts", type=Path, help="folder of floor.py")
    dying.add_argument("cases", nargs="*", metavar="CASE", help=f"which: {' '.join(faults.CASES)} (all by default)")
    options = parser.parse_args()
    match options.kind:
        case "ours":
            found = ours.run(options.sites, options.size, options.rounds)
            print(ours.show(found))
            hand_over(_of_ours(found), options.json)
        case "memory":
            hand_over(_memory(options.sites, options.size), options.json)
        case "peers":
            hand_over(_peers(options), options.json)
        case "duties":
            hand_over(duties.run(options.size, options.scripts, CPU_TARGET_S), options.json)
        case "faults":
            hand_over(faults.run(options.cases), options.json)


def _of_ours(found: ours.Rounds) -> list[Result]:
    what, big = f"round of {found.sites} sites, {found.size}", found.size != "tiny"
    command = f"{COMMAND} ours --sites {found.sites} --size {found.size}"
    return [
        at_most(f"{what}: wall time", found.median_round_s, "s", None if big else FIXED_TARGET_S, command),
        at_most(f"{what}: CPU per site", found.cpu_s_per_site_round, "s", CPU_TARGET_S if big else None, command),
        at_most(f"{what}: aggregator's peak", found.aggregator_resident_mib, "MiB", MEMORY_TARGET_MIB, command),
    ]


def _memory(counts: list[int], size: str) -> list[Result]:
    rows: list[Result] = []
    peaks: list[int] = []
    for sites in counts:
        found = ours.run(sites, size, 2)
        print(ours.show(found))
        peaks.append(found.aggregator_resident_mib)
        name = f"aggregator's peak at {sites} sites, {size}, mapped files included"
        rows.append(at_most(name, peaks[-1], "MiB", MEMORY_TARGET_MIB, f"{COMMAND} memory"))
    growth = max(peaks) / peaks[0]
    name = f"aggregator's peak, {counts[-1]} sites / {counts[0]}, {size}"
    return [*rows, at_most(name, growth, "x", GROWTH_TARGET, f"{COMMAND} memory", peaks[0])]


def _peers(options: argparse.Namespace) -> list[Result]:
    def own() -> ours.Rounds:
        found = ours.run(options.sites, options.size, options.rounds)
        print(ours.show(found), flush=True)
        return found

    before, found = own(), []
    for name in ("nvflare", "flower"):
        python: Path | None = getattr(options, name)
        if python is not None:
            found.append(
                peers.peer(name, options.scripts.resolve(), python.absolute(), options.sites, options.size, options.rounds)
            )
            print(found[-1], flush=True)
    return peers.compare(before, own(), found, WALL_TARGETS)


if __name__ == "__main__":
    main()
