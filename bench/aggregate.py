"""Streaming FedAvg of a ViT-B/16-sized model beside Flower's own `aggregate_train`, on the same updates in one run.

    .venv/bin/python -m bench.aggregate [--updates 4 16] [--repeats 3] [--json FILE]

Three cases, each in a process of its own, interleaved; of each the quickest run counts, because other work on the machine
only ever adds time. Time is wall time, and beside it CPU time (both sides compute on one core): where the two ratios
differ, the machine was busy with something else.

mean     our means of all tensors, from files to arrays in memory: what Flower's aggregate_train does from replies in
         memory to arrays in memory. This is the comparison of time, both wall and CPU.
whole    `aggregator.aggregate.aggregate`, from files to a durable file with its SHA-256: what a round waits for. Its peak
         of anonymous memory (RssAnon) is the comparison of memory, its result the comparison of numbers. Its time is told
         beside Flower's, which neither writes nor hashes, without a target.
flower   `bench/flower_case.py`, in a virtual environment of its own.

There are four different files of 346 MB, in a temporary folder; update i is file i modulo 4, for us and for Flower (whose
replies share arrays), so that 16 updates fit a small machine and are read from the page cache, as they are after an upload.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aggregator.aggregate import AggregateJob, UpdateInput, aggregate, averages, shares_of
from bench import vit
from bench.flower_env import flower_python
from bench.result import Result, at_most, hand_over
from histofed.weights import TensorFile

FILES = 4
ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python -m bench.aggregate"
TIME_TARGET, MEMORY_GROWTH_TARGET, MEMORY_TARGET, AGREEMENT_TARGET = 0.5, 1.2, 2.5, 1e-6


@dataclass(frozen=True)
class Taken:
    """Seconds by the wall clock, and of every thread's CPU."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Taken:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, begin: Taken) -> Taken:
        return Taken(self.wall - begin.wall, self.cpu - begin.cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, nargs=2, default=[4, 16], metavar=("FEW", "MANY"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--case", nargs=3, metavar=("NAME", "FOLDER", "UPDATES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, folder, updates = options.case
        print(json.dumps(asdict({"mean": run_mean, "whole": run_whole}[name](Path(folder), int(updates)))))
        return
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as folder:
        few, many = options.updates
        hand_over(measure(Path(folder), few, many, options.repeats), options.json)


def measure(folder: Path, few: int, many: int, repeats: int) -> list[Result]:
    """Every case, `repeats` times, with `few` and with `many` updates."""
    flower = str(flower_python())
    for index in range(FILES):
        vit.write(folder / str(index), seed=index)
    rows: list[Result] = []
    memory: dict[int, int] = {}
    differences = []
    for updates in (few, many):
        taken: dict[str, list[Taken]] = {"mean": [], "whole": [], "flower": []}
        memory[updates] = 0
        for _ in range(repeats):
            for name in ("mean", "whole"):
                own, peak = child([sys.executable, "-m", "bench.aggregate", "--case", name, str(folder), str(updates)])
                taken[name].append(own)
                if name == "whole":
                    memory[updates] = max(memory[updates], peak)
            peer, _ = child([flower, "bench/flower_case.py", str(folder), str(updates), str(folder / "flower")], watch=False)
            taken["flower"].append(peer)
        differences.append(largest_difference(folder))
        rows.extend(compare(taken, updates))
    models, growth = memory[many] / vit.BYTES, memory[many] / memory[few]
    return [
        *rows,
        at_most(f"FedAvg RssAnon, {many} updates / {few}", growth, "x", MEMORY_GROWTH_TARGET, COMMAND, memory[few] / 1e6),
        at_most(f"FedAvg RssAnon, {many} updates", models, "models", MEMORY_TARGET, COMMAND, vit.BYTES / 1e6),
        at_most("FedAvg difference / largest weight", max(differences), "", AGREEMENT_TARGET, COMMAND),
    ]


def compare(taken: Mapping[str, Sequence[Taken]], updates: int) -> Iterator[Result]:
    """The quickest of ours over Flower's quickest; the baseline is Flower's seconds per update."""
    walls = {name: min(one.wall for one in runs) for name, runs in taken.items()}
    cpus = {name: min(one.cpu for one in runs) for name, runs in taken.items()}
    for what, seconds, case, target in (
        ("time", walls, "mean", TIME_TARGET),
        ("CPU time", cpus, "mean", TIME_TARGET),
        ("time with file and hash", walls, "whole", None),
    ):
        peer = seconds["flower"]
        name = f"FedAvg {what} per update, {updates} updates"
        yield at_most(name, seconds[case] / peer, "x Flower", target, COMMAND, peer / updates)


def child(command: list[str], *, watch: bool = True) -> tuple[Taken, int]:
    """Run a case: what it measured, and its peak RssAnon in bytes."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    peak = 0
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        while watch and process.poll() is None:
            peak = max(peak, rss_anon(process.pid))
            time.sleep(0.005)
        output, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command[1:4])} ended with exit code {process.returncode}")
    return Taken(**json.loads(output)), peak


def rss_anon(pid: int) -> int:
    """Bytes of anonymous memory of a process; 0 when it has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0


def updates_of(folder: Path, count: int) -> tuple[UpdateInput, ...]:
    return tuple(UpdateInput(f"site-{index:02}", folder / str(index % FILES), 100 + 17 * index) for index in range(count))


def run_mean(folder: Path, count: int) -> Taken:
    """The means alone, into memory."""
    begin = Taken.now()
    updates = updates_of(folder, count)
    result = np.empty(vit.WEIGHTS, np.float32)
    place = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(TensorFile(update.path)) for update in updates]
        for piece in averages(files, shares_of(updates)):
            result[place : place + piece.size] = piece
            place += piece.size
    return Taken.now() - begin


def run_whole(folder: Path, count: int) -> Taken:
    """The function that a round calls; leaves `ours` in the folder."""
    job = AggregateJob(folder / "0", updates_of(folder, count), None, (), 1, folder / "ours", None)
    begin = Taken.now()
    aggregate(job)
    return Taken.now() - begin


def largest_difference(folder: Path) -> float:
    """The largest |ours - Flower's| / largest |weight| of any tensor; infinite when a type changed."""
    flower, place, worst = np.memmap(folder / "flower", np.float32, "r"), 0, 0.0
    with TensorFile(folder / "ours") as ours, TensorFile(folder / "0") as base:
        for name, array in ours.items():
            if array.dtype != base.array(name).dtype:
                return math.inf
            mine, theirs = array.reshape(-1), flower[place : place + array.size]
            worst = max(worst, float(np.abs(mine - theirs).max() / np.abs(theirs).max()))
            place += array.size
    assert place == flower.size, "both have as many weights"
    return worst


if __name__ == "__main__":
    main()
