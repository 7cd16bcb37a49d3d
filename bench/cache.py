"""What the cache of decoded tiles costs and saves: a first epoch with a cold cache, and every later run.

    .venv/bin/python -m bench.cache [--data DIR] [--tiles 600] [--size 64] [--runs 5] [--json FILE]

Baseline of the same run: what a research script does each epoch, Pillow's decode and a bilinear resize to `size`, one tile
after the other in one thread. Medians of `runs`, each with an empty cache folder; the tiles are drawn (224 px JPEG) where no
folder is named. Tiles are in the page cache in every case, so that arithmetic is compared and not the disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from bench.result import Result, at_most, hand_over
from histofed.tiles import cache, folder
from histofed.tiles.draw import draw_tiles
from histofed.tiles.store import DEFAULT_BYTES, TileStore
from histofed.tiles.tileset import TileSet

COMMAND = "python -m bench.cache"
COLD_TARGET = 1.0
"""A first epoch through the cache is no slower than decoding without one."""
WARM_TARGET = 0.2
PATIENTS = 10
"""Per class, of drawn tiles."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of tiles with MSIH and nonMSIH, read as often as --tiles needs")
    parser.add_argument("--tiles", type=int, default=600)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as name:
        scratch = Path(name)
        tiles = tileset(options.data, options.tiles, scratch / "tiles")
        hand_over(measure(tiles, options.size, options.runs, scratch / "cache"), options.json)


def tileset(data: Path | None, count: int, scratch: Path) -> TileSet:
    """About `count` different files: drawn, or copies of those in `data`, each with its number behind it."""
    if data is None:
        draw_tiles(scratch, patients_per_class=PATIENTS, tiles_per_patient=max(1, count // (2 * PATIENTS)), size=224)
        return folder.scan(scratch, ("MSIH", "nonMSIH"))
    found = folder.scan(data, ("MSIH", "nonMSIH"))
    for turn in range(-(-count // len(found.tiles))):
        for tile in found.tiles:
            copy = scratch / str(turn) / found.classes[tile.class_index] / tile.path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(tile.path.read_bytes() + str(turn).encode())
    return folder.scan(scratch, found.classes)


def measure(tiles: TileSet, size: int, runs: int, folder_of_cache: Path) -> list[Result]:
    """Baseline, memory, cold and warm take turns, so that a slow moment of the machine hits all of them."""
    seconds: dict[str, list[float]] = {"baseline": [], "memory": [], "cold": [], "warm": []}
    for _ in range(runs):
        shutil.rmtree(folder_of_cache, ignore_errors=True)
        store = TileStore(folder_of_cache, DEFAULT_BYTES)
        seconds["baseline"].append(timed(lambda: research_script(tiles, size)))
        seconds["memory"].append(timed(lambda: cache.load(tiles, size)))
        seconds["cold"].append(timed(lambda: cache.load(tiles, size, store=store)))  # noqa: B023  # called at once
        seconds["warm"].append(timed(lambda: cache.load(tiles, size, store=store)))  # noqa: B023  # called at once
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    base, threads = middle["baseline"], len(os.sched_getaffinity(0))
    where = f"{len(tiles.tiles)} tiles at {size} px, {threads} threads"
    return [
        at_most(f"cold cache / decoding ({where})", middle["cold"] / base, "x", COLD_TARGET, COMMAND, base),
        at_most("warm cache / decoding", middle["warm"] / base, "x", WARM_TARGET, COMMAND, base),
        at_most("memory, no cache / decoding", middle["memory"] / base, "x", None, COMMAND, base),
    ]


def research_script(tiles: TileSet, size: int) -> None:
    """One epoch of `ImageFolder` with `Resize(size)`, without the tensors."""
    for tile in tiles.tiles:
        with tile.path.open("rb") as file, Image.open(file) as image:
            np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def timed(work: Callable[[], object]) -> float:
    """Wall seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
