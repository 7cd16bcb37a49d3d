"""What a site and round cannot cost less than, with what is promised: each duty alone, in one process, without a network.

The same functions that daemons and trainers call, on files of the model's size, one after the other. Beside their sum stands
`floor.py grpc` of the peers' scripts, where they are given: gRPC over mutual TLS and a running sum, and nothing else.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aggregator.aggregate import AggregateJob, UpdateInput, aggregate
from bench.result import Result, at_most
from bench.rounds import ours
from histofed.base.hashing import sha256_file
from histofed.privacy.clipping import clip_file
from histofed.recipes.contract import TrainTask
from histofed.recipes.exchange import ExchangeWorkshop
from histofed.transport import limits
from histofed.transport.part import PartFile
from histofed.weights import TensorFile, difference

COMMAND: Final = "python -m bench.rounds duties"
REPEATS: Final = 3
SITES: Final = 4
"""Among which the making of a model is divided."""
NO_BOUND: Final = 1e9


@dataclass(frozen=True)
class Duty:
    """Something that a site and round needs."""

    words: str
    do: Callable[[], object]
    sites: int = 1
    """How many share it."""

    def cpu_s(self) -> float:
        """CPU-seconds of all threads, user and system: the median of a few times. Files are in the page cache, as after a
        transfer."""
        taken = []
        for _ in range(REPEATS):
            begin = time.process_time()
            self.do()
            taken.append(time.process_time() - begin)
        return statistics.median(taken) / self.sites


def run(size: str, scripts: Path | None, target_s: float) -> list[Result]:
    """What each duty costs, their sum, and the sum with gRPC."""
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as name:
        taken = [(duty.words, duty.cpu_s()) for duty in _duties(Path(name), size)]
    total = sum(seconds for _, seconds in taken)
    rows = [*taken, (f"duties of a site and round, {size}", total)]
    if scripts is None:
        return [at_most(words, seconds, "s", None, COMMAND) for words, seconds in rows]
    wire = _wire(scripts)
    rows.append(("gRPC over mutual TLS and a sum (floor.py)", wire))
    both = at_most(f"both, of a site and round, {size}", total + wire, "s", target_s, COMMAND, wire)
    return [*(at_most(words, seconds, "s", None, COMMAND) for words, seconds in rows), both]


def _duties(folder: Path, size: str) -> Iterator[Duty]:
    """In the order of a round; what one makes the next needs."""
    values, tensors = ours.WEIGHTS[size]
    config = {"weights": values, "tensors": tensors}
    base, trained = folder / "base", folder / "shared.safetensors"
    workshop = ExchangeWorkshop()
    workshop.initialise(config, 1, base)
    task = TrainTask(config, base, None, None, minimum_patients=1, seed=1, output=folder, threads=1, device="cpu")
    yield Duty("site: the model comes, is hashed and written", _arrival(base, folder / "model"))
    yield Duty("trainer: the update is made and written", lambda: workshop.train(task, lambda _: None, lambda: False))
    yield Duty("trainer: its norm and its name (SHA-256)", lambda: clip_file(trained, base, NO_BOUND, folder / "clipped"))
    yield Duty("aggregator: it comes, is hashed and written", _arrival(trained, folder / "update"))
    yield Duty("aggregator: its norm", lambda: _norm(trained, base))
    updates = tuple(UpdateInput(f"site-{number}", trained, 1) for number in range(SITES))
    job = AggregateJob(base, updates, None, (), 1, folder / "next", None)
    yield Duty(f"aggregator: a model of {SITES} updates, a share", lambda: aggregate(job), SITES)


def _arrival(source: Path, target: Path) -> Callable[[], None]:
    """What either end does with a blob that comes, once gRPC has handed it over."""
    name, size = sha256_file(source), source.stat().st_size

    def arrive() -> None:
        part = PartFile(target.with_suffix(".part"), name, size)
        with source.open("rb") as file:
            while data := file.read(limits.CHUNK):
                part.append(part.written, data)
                if part.written - part.committed >= limits.SYNC_EVERY:
                    part.commit()
        part.verify()
        part.adopt(target)
        part.close()

    return arrive


def _norm(update: Path, base: Path) -> None:
    with TensorFile(update) as new, TensorFile(base) as old:
        difference(new, old)


def _wire(scripts: Path) -> float:
    command = [sys.executable, str(scripts.resolve() / "floor.py"), "grpc", "--sites", str(SITES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = re.search(r"cpu_s_per_site_round\s+([\d.]+)", done.stdout)
    if found is None:
        raise SystemExit(f"floor.py printed no cost:\n{done.stdout}")
    return float(found[1])
