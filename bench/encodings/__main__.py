"""What update encodings cost and buy, on the updates that a small GAN federation really makes.

    .venv/bin/python -m bench.encodings [--data DIR] [--size 32] [--rounds 4] [--steps 30] [--json FILE]
    .venv/bin/python -m bench.encodings --quality --data DIR --nets DIR [--json FILE]

Two sites train the preset `default`, smaller, on their share of the patients (of drawn tiles without `--data`). Of the first
and the last round's updates, for each encoding: bytes as a share of float32's, what lossless coding alone makes of them,
CPU time at the site (with hashing and writing) and of one pass at the aggregator (there are two), and the error of the
aggregate against that of the plain updates, as a share of what the round changed. Then the same rounds with encoded updates:
the bytes of a round both ways, to sites that kept the model before.

With `--quality`: the Fréchet distance of generators from encoded updates to held-out patients' tiles, beside those of five
float32 runs. Some ten CPU-minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.encodings.measure import BYTES_TARGET, COMMAND, both_ways, costs, rows
from bench.encodings.rehearsal import Plan, rehearse, sites_of
from bench.result import Result, at_most, hand_over
from histofed.training.runtime import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="tiles with MSIH and nonMSIH, or their sisters' names")
    parser.add_argument("--size", type=int, default=32, help="edge of the tiles, pixels")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30, help="of one site in one round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--quality", action="store_true", help="train with encoded updates and judge; needs --data and --nets"
    )
    parser.add_argument("--nets", type=Path, help="folder with the feature nets' files")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    plan = Plan(options.size, options.rounds, options.steps, options.batch)
    prepare("cpu", 1, 1)
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as folder:
        if not options.quality:
            found = measure(plan, options.data, Path(folder))
        elif options.data is None or options.nets is None:
            parser.error("--quality needs --data and --nets")
        else:
            from bench.encodings.quality import compare

            found = compare(plan, options.data, options.nets, Path(folder))
        hand_over(found, options.json)


def measure(plan: Plan, data: Path | None, scratch: Path) -> list[Result]:
    """Costs on the first and the last round's updates."""
    made = [*rehearse(plan, sites_of(data, scratch), "float32", "plain", scratch / "rounds")]
    found = list[Result]()
    for one in (made[0], made[-1]):
        measured = costs(one, scratch)
        assert all(cost.same for cost in measured), "an encoding is deterministic"
        assert next(cost for cost in measured if cost.encoding == "float32-delta").relative == 0.0, "and this one exact"
        found += rows(measured, f"round {one.number}")
    for encoding in ("float32-delta", "bfloat16-delta"):
        coded = [*rehearse(plan, sites_of(data, scratch / encoding), encoding, "coded", scratch / f"rounds-{encoding}")]
        target = BYTES_TARGET if encoding == "bfloat16-delta" else None
        for one in (coded[0], coded[-1]):
            name = f"both ways / float32 ({encoding}, round {one.number})"
            found.append(at_most(name, both_ways(one), "x", target, COMMAND))
    return found


if __name__ == "__main__":
    main()
