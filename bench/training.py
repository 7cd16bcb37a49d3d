"""How fast the engine trains on a CPU, as a ratio to the literal recipe of a research script (`bench/script.py`).

    .venv/bin/python -m bench.training [--generators deep paper-cnn] [--tiles 320] [--turns 7] [--threads 2] [--json FILE]

Both train the same networks (a generator and `vit-mini`, 64 px, batch 32) on the same drawn tiles (224 px JPEG) with two
threads unless told otherwise. The engine's tiles are in its cache already; the script decodes them, with as many workers as
suit it best. The two take turns of a few steps in one process, so that a slow moment of the machine hits both; a value is
the median over the turns of the ratio of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from bench.cache import tileset
from bench.result import Result, at_least, hand_over
from bench.script import Script, batches, written_plainly
from histofed.base.clock import SystemClock
from histofed.models.registry import build_discriminator, build_generator
from histofed.tiles import cache
from histofed.tiles.store import DEFAULT_BYTES, TileStore
from histofed.tiles.tileset import TileSet
from histofed.training.batches import Batches, BatchPlan
from histofed.training.checkpoint import CheckpointStore
from histofed.training.contest import Contest
from histofed.training.loop import train
from histofed.training.rules import Rules
from histofed.training.runtime import prepare

COMMAND: Final = "python -m bench.training"
TARGET: Final = 1.8
SIZE, BATCH, LATENT, CLASSES = 64, 32, 100, 2
STEPS: Final = 3
"""Of a turn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", nargs="+", default=["deep", "paper-cnn"])
    parser.add_argument("--tiles", type=int, default=320)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    prepare("cpu", options.threads, 1)
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as name:
        scratch = Path(name)
        tiles = tileset(None, options.tiles, scratch / "tiles")
        rows = [row for name in options.generators for row in measure(tiles, name, options.turns, scratch)]
    hand_over(rows, options.json)


def measure(tiles: TileSet, generator: str, turns: int, scratch: Path) -> list[Result]:
    """The engine beside two scripts; the workers of the faster kind of loading are taken for both."""
    workers = min((0, 2), key=lambda count: seconds(script(tiles, generator, count).step))
    players: dict[str, Callable[[], object]] = {
        "script": script(tiles, generator, workers).step,
        "one fake": script(tiles, generator, workers, one_fake=True).step,
    }
    engine = the_engine(tiles, generator, scratch)
    taken: dict[str, list[float]] = {name: [] for name in (*players, "engine")}
    for turn in range(turns + 1):
        found = {name: seconds(step) for name, step in players.items()} | {"engine": seconds(engine, 1) / STEPS}
        if turn:  # the first warms up
            for name, value in found.items():
                taken[name].append(value)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    ratio = {name: statistics.median(a / b for a, b in zip(taken[name], taken["engine"], strict=True)) for name in players}
    where = f"{generator}, {SIZE} px, {torch.get_num_threads()} threads"
    rates = {name: BATCH / value for name, value in middle.items()}
    return [
        at_least(f"training / script ({where})", ratio["script"], "x", TARGET, COMMAND, rates["script"]),
        at_least(f"training / script with one fake ({where})", ratio["one fake"], "x", None, COMMAND, rates["one fake"]),
        at_least(f"training ({where}; script: {workers} workers)", rates["engine"], "images/s", None, COMMAND),
    ]


def script(tiles: TileSet, generator: str, workers: int, one_fake: bool = False) -> Script:
    """Networks as a script has them."""
    torch.manual_seed(1)
    one = written_plainly(build_generator(generator, SIZE, CLASSES, LATENT))
    other = build_discriminator("vit-mini", SIZE, CLASSES)
    data = batches(tiles.tiles, SIZE, BATCH, workers)
    return Script(one, other, data, LATENT, CLASSES, torch.device("cpu"), one_fake)


def the_engine(tiles: TileSet, generator: str, scratch: Path) -> Callable[[], object]:
    """A turn of the engine; its tiles come from a warm cache."""
    store = TileStore(scratch / "cache", DEFAULT_BYTES)
    cache.load(tiles, SIZE, store=store)
    decoded = cache.load(tiles, SIZE, store=store)
    torch.manual_seed(1)
    networks = build_generator(generator, SIZE, CLASSES, LATENT), build_discriminator("vit-mini", SIZE, CLASSES)
    for network in networks:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    first, second = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), fused=True) for net in networks)
    contest = Contest(*networks, first, second, torch.device("cpu"))
    plan = BatchPlan(BATCH, 1, balanced=True, flips=False)
    shown = Batches(decoded.pixels, decoded.labels, CLASSES, plan)
    folder = scratch / "task"
    folder.mkdir(exist_ok=True)

    def turn() -> object:
        checkpoints = CheckpointStore(folder, "bench")
        return train(contest, shown, STEPS, CLASSES, checkpoints, SystemClock(), lambda _: None, lambda: False, Rules())

    return turn


def seconds(work: Callable[[], object], times: int = STEPS) -> float:
    """Wall seconds of one call, over `times` of them."""
    begin = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begin) / times


if __name__ == "__main__":
    main()
