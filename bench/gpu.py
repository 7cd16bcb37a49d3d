"""How much of a GPU the engine uses: `make bench-gpu`, or alone

    .venv/bin/python -m bench.gpu [--data DIR] [--json FILE] [--profile FILE]

ViT-B/16 at 224 px against the generator `deep`, bfloat16, one process. Told: images per second at the batch that does best;
TFLOP/s over the moves of both players (counted by torch, not estimated) as a share of the rate that this card reaches in a
plain bfloat16 matrix product; the ratio to the literal recipe (`bench/script.py`, float32, decoding JPEGs) in the same run;
the memory that preset `default` needs at 128 px and batch 64; and a profile of what bounds the steps. Without a GPU nothing
is measured and the exit code is 1, with one too small for the smallest batch 72.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bench.cache import tileset
from bench.result import Result, at_least, at_most, hand_over
from bench.script import Script, batches, written_plainly
from histofed.base.errors import OutOfMemory
from histofed.models.ranges import to_model_range
from histofed.models.registry import build_discriminator, build_generator
from histofed.recipes.gan.building import batches_of, compile_networks, contest_of
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.gan.settings import Changes, from_preset
from histofed.recipes.presets import load
from histofed.tiles import cache
from histofed.tiles.cache import TileCache
from histofed.tiles.tileset import TileSet
from histofed.training.batches import Batches
from histofed.training.contest import Contest
from histofed.training.deal import deal
from histofed.training.runtime import prepare
from histofed.training.step import play
from histofed.training.textures import MOST_TILES, Textures

COMMAND: Final = "make bench-gpu"
RATIO_TARGET, SHARE_TARGET, MEMORY_TARGET_GB = 5.0, 0.4, 8.0
GB: Final = 1e9


@dataclass(frozen=True)
class Case:
    """What is trained, and how long each measurement takes."""

    config: GanConfig
    batches: tuple[int, ...] = (64, 128, 192, 256, 384, 512)
    """Tried from the smallest on, until one does not fit."""
    script_batch: int = 64
    steps: int = 8
    matrix: int = 8192
    """Edge of the matrices of the plain product."""


def vit_b_16() -> Case:
    """The paper's discriminator, with the engine's choices."""
    table: dict[str, Any] = {
        "image_size": 224,
        "steps": 1000,
        "generator": "deep",
        "precision": "bf16",
        "flips": True,
        "discriminator": {"name": "vit_base_patch16_224"},
    }
    return Case(GanConfig(**table))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of tiles; drawn ones otherwise")
    parser.add_argument("--tiles", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--profile", type=Path, default=Path("bench/gpu-profile.txt"), help="write the profile here")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no GPU: torch finds no CUDA device on this machine, so nothing was measured", file=sys.stderr)
        return 1
    device = prepare("cuda", 0, 1)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    with tempfile.TemporaryDirectory(prefix="histofed-bench-") as scratch:
        tiles = tileset(options.data, options.tiles, Path(scratch) / "tiles")
        try:
            rows = [*measure(vit_b_16(), tiles, device, options.profile), memory_of_default(tiles, device)]
        except OutOfMemory as error:
            print(error, file=sys.stderr)
            return error.exit_code
    hand_over(rows, options.json)
    return 0


def measure(case: Case, tiles: TileSet, device: torch.device, profile_to: Path) -> list[Result]:
    """Every row but that of the memory; writes the profile of the best batch."""
    decoded = cache.load(tiles, case.config.image_size)
    batch, compiled, rate, skipped = best_of(case, decoded, device)
    config = case.config.model_copy(update={"batch": batch, "compile": compiled})
    # one engine at a time: the best batch may be all that fits
    work = flops(Engine(config.model_copy(update={"compile": False}), decoded, device))
    matrix = matrix_rate(case.matrix, device)
    share = work * rate / batch / matrix
    profile_to.write_text(profiled(Engine(config, decoded, device)))
    print(f"profile of {batch} images a step: {profile_to}{''.join(f'; {why}' for why in skipped)}", flush=True)
    script = script_rate(case, tiles, device)
    where = f"{case.config.discriminator.name}, {case.config.image_size} px, batch {batch}{', compiled' * compiled}"
    return [
        at_least(f"training ({where})", rate, "images/s", None, COMMAND),
        at_least("training / script (float32, JPEGs)", rate / script, "x", RATIO_TARGET, COMMAND, script),
        at_least("arithmetic", work * rate / batch / 1e12, "TFLOP/s", None, COMMAND),
        at_least("arithmetic / bf16 matrix product", share, "x", SHARE_TARGET, COMMAND, matrix / 1e12),
    ]


class NotCompiled(Exception):
    """A network that was to be compiled runs as it is written."""


class Engine:
    """The engine's own pieces, a step at a time."""

    def __init__(self, config: GanConfig, tiles: TileCache, device: torch.device) -> None:
        """On a card that nothing of an earlier engine is left on."""
        _empty(device)
        self.config, self._rules = config, config.rules()
        self.contest: Contest = contest_of(config, device, averaged=True)
        self.notes = compile_networks(config, self.contest, 1)
        """Why a network that was to be compiled is not."""
        self._batches: Batches = batches_of(config, tiles, 1, device)
        some, classes = self._batches.some(MOST_TILES), len(config.classes)
        self._textures = Textures(*some, classes, device) if self._rules.textures else None
        self._step = 0

    def step(self) -> object:
        """Both players move; nothing is read back."""
        pixels_BCHW, labels_B = self._batches.at(self._step)
        real_BCHW = to_model_range(pixels_BCHW)
        dealt = deal(real_BCHW, labels_B, self.config.latent, len(self.config.classes), self._rules)
        self._step += 1
        return play(self.contest, self._rules, dealt, self._step - 1, textures=self._textures)


def best_of(case: Case, tiles: TileCache, device: torch.device) -> tuple[int, bool, float, list[str]]:
    """The batch with the highest rate, whether compiled, its images per second, and what could not be tried.

    Raises `OutOfMemory` where not even the smallest batch fits.
    """
    found: dict[tuple[int, bool], float] = {}
    skipped: list[str] = []
    for batch in case.batches:
        try:
            found[batch, False] = rate_of(case, tiles, device, batch, compiled=False)
        except torch.OutOfMemoryError:
            skipped.append(f"batch {batch} does not fit")
            break
    if not found:
        raise OutOfMemory(f"batch {case.batches[0]} does not fit into this GPU's memory; measure on a larger one")
    best, _ = max(found, key=lambda key: found[key])
    if device.type == "cuda":
        rate = compiled_rate(case, tiles, device, best)
        if isinstance(rate, str):
            skipped.append(rate)
        else:
            found[best, True] = rate
    batch, compiled = max(found, key=lambda key: found[key])
    for (one, how), rate in found.items():
        print(f"  batch {one:4}{' compiled' if how else ''}: {rate:8.1f} images/s", flush=True)
    return batch, compiled, found[batch, compiled], skipped


def compiled_rate(case: Case, tiles: TileCache, device: torch.device, batch: int) -> float | str:
    """Images per second of the compiled engine, or why it cannot be had."""
    try:
        return rate_of(case, tiles, device, batch, compiled=True)
    except torch.OutOfMemoryError:
        return f"batch {batch} does not fit when it is compiled"
    except NotCompiled as reason:
        return str(reason)


def rate_of(case: Case, tiles: TileCache, device: torch.device, batch: int, compiled: bool) -> float:
    """Images per second of the engine. Raises `NotCompiled` rather than call by that name what is not."""
    engine = Engine(case.config.model_copy(update={"batch": batch, "compile": compiled}), tiles, device)
    if engine.notes:
        raise NotCompiled("; ".join(engine.notes))
    return batch / seconds(engine.step, case.steps, device)


def script_rate(case: Case, tiles: TileSet, device: torch.device) -> float:
    """Images per second of the literal recipe, in torch's own mode, with the number of workers that suits it best."""
    config = case.config
    found = []
    for workers in {0, min(8, len(os.sched_getaffinity(0)))} if device.type == "cuda" else {0}:
        one = written_plainly(build_generator(config.generator, config.image_size, len(config.classes), config.latent))
        other = build_discriminator(config.discriminator.name, config.image_size, len(config.classes))
        data = batches(tiles.tiles, config.image_size, case.script_batch, workers)
        script = Script(one, other, data, config.latent, len(config.classes), device)
        with _kernels_of_a_script():
            found.append(case.script_batch / seconds(script.step, case.steps, device))
    return max(found)


def flops(engine: Engine) -> float:
    """Floating-point operations of one step, as torch counts them in every operator, there and back."""
    engine.step()
    with FlopCounterMode(display=False) as counter:
        engine.step()
    return float(counter.get_total_flops())


def matrix_rate(edge: int, device: torch.device) -> float:
    """Operations per second of a bfloat16 product of two square matrices."""
    a, b = (torch.randn(edge, edge, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * edge**3 / seconds(lambda: a @ b, 20, device)


def seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Of one call: the median over three turns of `times` calls, after two that warm up."""
    taken = []
    for turn in range(4):
        _wait(device)
        begin = time.perf_counter()
        count = times if turn else 2
        for _ in range(count):
            work()
        _wait(device)
        taken.append((time.perf_counter() - begin) / count)
    return statistics.median(taken[1:])


def profiled(engine: Engine) -> str:
    """What three steps spend their time on, kernel by kernel."""
    device = engine.contest.device
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as found:
        for _ in range(3):
            engine.step()
        _wait(device)
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table: str = found.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90)
    return table


def memory_of_default(tiles: TileSet, device: torch.device) -> Result:
    """What preset `default` takes of the card: 128 px, batch 64, all that torch has reserved for it, tiles included.

    Raises `OutOfMemory` where it does not fit.
    """
    config = replace(from_preset(load("default"), Changes()), steps=1000).config(len(tiles.tiles))
    config = config.model_copy(update={"image_size": 128, "batch": 64})
    _empty(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        engine = Engine(config, cache.load(tiles, config.image_size), device)
        for _ in range(2 * config.objective.penalty_every + 1):  # lazy penalties take the most
            engine.step()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory("preset default does not fit into this GPU's memory; measure on a larger one") from error
    _wait(device)
    peak = torch.cuda.max_memory_reserved(device) / GB
    return at_most("memory of preset default, 128 px, batch 64", peak, "GB", MEMORY_TARGET_GB, COMMAND)


@contextmanager
def _kernels_of_a_script() -> Iterator[None]:
    """The fast kernels inside: no script asks for the deterministic ones, some of which are many times slower."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def _empty(device: torch.device) -> None:
    """Give back what nobody uses. A compiled network refers to itself, so only the collector finds it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
