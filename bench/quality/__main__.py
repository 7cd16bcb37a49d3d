"""Whether `default` beats the paper's recipe on real tiles, at equal cost: Fréchet distance and linear probe.

    .venv/bin/python -m bench.quality run --data DIR --nets DIR --out DIR [--minutes 30] [--seeds 1 2 3]
    .venv/bin/python -m bench.quality report --out DIR [--target docs/results]

Each recipe trains with each seed on the training patients for `--minutes` CPU-minutes (of the process, all threads; judging
does not count). What counts are held-out patients: their tiles are the reference of the distance and the test of the probe,
and no network ever sees them. All runs advance in turns of `--turn` CPU-minutes, so that whenever it is stopped there is a
fair comparison; started again it goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.quality.recipes import NAMES

_BENCH: Final = (sys.executable, "-m", "bench.quality")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and judge; goes on where it stopped")
    one = commands.add_parser("one", help="advance one run to so many minutes (what `run` starts)")
    one.add_argument("recipe", choices=NAMES)
    one.add_argument("seed", type=int)
    one.add_argument("--until", type=float, required=True, metavar="MINUTES")
    one.add_argument("--name", help="of the run's folder")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="values")
    real = commands.add_parser("yardsticks", help="what real tiles score, whole and spoiled (what `run` does first)")
    classes = commands.add_parser("classes", help="how much of a class there is to learn, and how much the runs show")
    for command in (run, one, real, classes):
        command.add_argument("--data", type=Path, required=True, help="tiles with MSIH and nonMSIH, or their sisters' names")
        command.add_argument("--nets", type=Path, required=True, help="folder with the feature nets' files")
    run.add_argument("--minutes", type=int, default=30)
    run.add_argument("--turn", type=int, default=10)
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    run.add_argument("--at-once", type=int, default=2, help="runs side by side, one thread each")
    report = commands.add_parser("report", help="table, curves and sheets of what has run")
    report.add_argument("--target", type=Path, default=Path("docs/results"))
    for command in (run, one, real, classes, report):
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    match options.command:
        case "run":
            take_turns(options)
        case "one":
            from bench.quality.one import advance

            advance(options)
        case "yardsticks":
            from bench.quality.yardsticks import measure

            measure(options.data, options.nets, options.out)
        case "classes":
            from bench.quality.classes import show

            show(options.data, options.nets, options.out)
        case _:
            from bench.quality.report import write_report

            write_report(options.out, options.target)


def take_turns(options: argparse.Namespace) -> None:
    """Every run to the first mark, then every run to the second; a few at once, recipes side by side."""
    subprocess.run([*_BENCH, "yardsticks", *_places(options)], check=True)
    for mark in range(options.turn, options.minutes + 1, options.turn):
        waiting = [(recipe, seed) for seed in options.seeds for recipe in NAMES]
        while waiting:
            now, waiting = waiting[: options.at_once], waiting[options.at_once :]
            children = [subprocess.Popen(_command(options, recipe, seed, mark)) for recipe, seed in now]
            codes = [child.wait() for child in children]
            if any(codes):
                sys.exit("a run failed; its words are above")


def _command(options: argparse.Namespace, recipe: str, seed: int, mark: int) -> list[str]:
    return [*_BENCH, "one", recipe, str(seed), "--until", str(mark), *_places(options)]


def _places(options: argparse.Namespace) -> list[str]:
    return ["--data", str(options.data), "--nets", str(options.nets), "--out", str(options.out)]


if __name__ == "__main__":
    main()
