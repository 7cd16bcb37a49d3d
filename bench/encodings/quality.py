"""Whether encoded updates make a worse generator: its Fréchet distance beside those of five float32 seeds.

Few tiles and a minute of training make the distances large; what counts is whether the encoded run's lies where the float32
runs' lie, which differ in nothing but their seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from bench.encodings.rehearsal import CLASSES, Plan, config_of, rehearse, sites_of
from bench.quality.judge import HELD_OUT, NETS, SPLIT_SEED, draw
from bench.result import Result, at_most
from histofed import weights
from histofed.base.encoding import Encoding
from histofed.evaluation.feature_nets import load_feature_net
from histofed.evaluation.frechet import frechet_distance
from histofed.models.networks import load_floating_state
from histofed.recipes.gan.building import generator_of
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.sections import parse_section
from histofed.tiles import cache
from histofed.tiles import folder as tile_folder
from histofed.tiles.holdout import hold_out
from histofed.tiles.split import Part, only, write_parts
from histofed.training.tensors import with_prefix

SEEDS: Final = 5
TILES: Final = 300
"""Generated for each distance."""
CODED: Final[Encoding] = "bfloat16-delta"
COMMAND: Final = "python -m bench.encodings --quality"


class Judge:
    """The held-out patients' tiles through the feature nets, once."""

    def __init__(self, data: Path, nets: Path, size: int, scratch: Path) -> None:
        tiles = tile_folder.scan(data, CLASSES)
        roles = hold_out(tiles, HELD_OUT, 0.0, SPLIT_SEED)
        write_parts(data, [Part("training", "train", only(tiles, roles, "train").tiles)], scratch / "tiles")
        self.training = scratch / "tiles" / "training"
        held_out = cache.load(only(tiles, roles, "validation"), size)
        self._labels = held_out.labels
        self._nets = [load_feature_net(name, nets / file, sha256) for name, (file, sha256) in NETS.items()]
        self._real = {net.name: net.features(held_out.pixels) for net in self._nets}

    def distances(self, config: GanConfig, server: Path) -> dict[str, float]:
        """Of a round's EMA generator, by net."""
        generator = generator_of(config)
        load_floating_state(generator, with_prefix(weights.read(server), "ema."))
        pixels, _ = draw(generator, TILES, self._labels)
        return {net.name: frechet_distance(net.features(pixels), self._real[net.name]) for net in self._nets}


def compare(plan: Plan, data: Path, nets: Path, scratch: Path) -> list[Result]:
    """The encoded run of each of the first two seeds against the interval of all float32 seeds, for each net."""
    judge = Judge(data, nets, plan.size, scratch)
    sites = sites_of(judge.training, scratch)
    config = parse_section(GanConfig, config_of(plan))

    def run(encoding: Encoding, number: int) -> dict[str, float]:
        *_, last = rehearse(plan, sites, encoding, f"seed-{number}", scratch / f"{encoding}-{number}")
        found = judge.distances(config, last.server)
        print(f"{encoding}, seed {number}: {found}", flush=True)
        return found

    coded = [run(CODED, number) for number in (1, 2)]
    plain = [run("float32", number) for number in range(1, SEEDS + 1)]
    rows = []
    for net in coded[0]:
        low, high = min(one[net] for one in plain), max(one[net] for one in plain)
        for number, one in enumerate(coded, 1):
            name = f"{net}: {CODED}, seed {number}, Fréchet distance / highest of {SEEDS} float32 seeds"
            rows.append(at_most(name, one[net] / high, "x", 1.0, COMMAND, high))
        spread = float(np.std([one[net] for one in plain], ddof=1))
        rows.append(at_most(f"{net}: lowest / highest of the float32 seeds", low / high, "x", None, COMMAND, high))
        rows.append(at_most(f"{net}: deviation of the float32 seeds", spread, "", None, COMMAND, high))
    return rows
