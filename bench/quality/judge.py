"""What a generator is worth: its tiles against those of held-out patients, on the features of two nets."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from bench.quality.recipes import CLASSES, EDGE
from histofed.base import durable
from histofed.base.errors import AlreadyThere
from histofed.base.ids import Json
from histofed.evaluation.feature_nets import load_feature_net
from histofed.evaluation.frechet import frechet_distance
from histofed.evaluation.probe import probe
from histofed.models.networks import Generator
from histofed.models.ranges import to_uint8
from histofed.tiles import cache, folder
from histofed.tiles.holdout import hold_out
from histofed.tiles.split import Part, held_out_parts, only, write_parts
from histofed.tiles.tileset import TileSet

HELD_OUT: Final = 0.25
"""Share of the patients of each class."""
SPLIT_SEED: Final = 1
NOISE_SEED: Final = 7
"""The noise that every generator is judged by."""
NETS: Final = {
    "mobilenet-v1": (
        "mobilenet_v1_075_224_imagenet.pt",
        "769c7b11c6bb02ffaa08b3d8bdd410f9f44786b911bcba38e589a257771fe15c",
    ),
    "squeezenet-1.1": (
        "squeezenet1_1_imagenet_notop.pt",
        "0bbf488331d11b4ecd21f9e435deaae2b9bd43d378ebd245ccc506cb3cf6989b",
    ),
}


@dataclass(frozen=True)
class Real:
    """Features and labels of real tiles of one side of the split, per net."""

    features: dict[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int64]


class Judge:
    """The held-out tiles, measured once and kept in `out/real.npz`, and the two nets."""

    def __init__(self, data: Path, nets: Path, out: Path) -> None:
        """Raises `AlreadyThere` for an `out` of other tiles, before anything in it is trusted."""
        tiles = folder.scan(data, CLASSES)
        _claim(out, _fingerprint(data, tiles))
        self.training_folder = _split(data, tiles, out / "tiles")
        self._nets = [load_feature_net(name, nets / file, sha256) for name, (file, sha256) in NETS.items()]
        kept = out / "real.npz"
        if not kept.exists():
            self._measure(tiles, kept)
        with np.load(kept) as found:
            self.trained, self.held_out = (
                Real({net.name: found[f"{side}/{net.name}"] for net in self._nets}, found[f"{side}/labels"])
                for side in ("train", "validation")
            )

    def of(self, generator: Generator, count: int) -> dict[str, Json]:
        """Distances to the held-out tiles, and the balanced accuracy on them of a probe that saw generated tiles alone.

        `count` tiles with the classes in the held-out tiles' shares, so that no distance is about the classes' shares.
        """
        pixels, labels = draw(generator, count, self.held_out.labels)
        distances, accuracies = dict[str, Json](), dict[str, Json]()
        for net in self._nets:
            features, real = net.features(pixels), self.held_out.features[net.name]
            distances[net.name] = frechet_distance(features, real)
            accuracies[net.name] = probe(features, labels, real, self.held_out.labels)
        return {"tiles": count, "frechet_distance": distances, "balanced_accuracy": accuracies}

    def distances(self, pixels: npt.NDArray[np.uint8]) -> dict[str, Json]:
        """Of tiles (N, 3, S, S) to the held-out tiles, whatever their classes."""
        return {net.name: frechet_distance(net.features(pixels), self.held_out.features[net.name]) for net in self._nets}

    def features(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Of tiles (N, 3, S, S), per net: (N, F)."""
        return {net.name: net.features(pixels) for net in self._nets}

    def of_real(self) -> dict[str, Json]:
        """The same of the training patients' real tiles: what a generator that is perfect would score, about."""
        distances, accuracies = dict[str, Json](), dict[str, Json]()
        for name, features in self.trained.features.items():
            real = self.held_out.features[name]
            distances[name] = frechet_distance(features, real)
            accuracies[name] = probe(features, self.trained.labels, real, self.held_out.labels)
        return {"tiles": len(self.trained.labels), "frechet_distance": distances, "balanced_accuracy": accuracies}

    def _measure(self, tiles: TileSet, kept: Path) -> None:
        roles = hold_out(tiles, HELD_OUT, 0.0, SPLIT_SEED)
        found: dict[str, npt.NDArray[np.generic]] = {}
        for side in ("train", "validation"):
            side_tiles = cache.load(only(tiles, roles, side), EDGE, EDGE)
            found[f"{side}/labels"] = side_tiles.labels
            found |= {f"{side}/{net.name}": net.features(side_tiles.pixels) for net in self._nets}
        half = kept.with_suffix(".half.npz")
        np.savez(half, **found)  # type: ignore[arg-type]  # numpy's stub takes the names for options
        half.replace(kept)


def draw(
    generator: Generator, count: int, like: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """`count` tiles (N, 3, S, S) with the classes in the shares of `like`, always from the same noise."""
    labels = like[np.linspace(0, len(like) - 1, count).round().astype(np.int64)]
    noise = torch.randn(count, generator.latent, generator=torch.Generator().manual_seed(NOISE_SEED))
    generator.eval()
    with torch.inference_mode():
        parts = [
            to_uint8(generator(noise[k : k + 100], torch.from_numpy(labels[k : k + 100]))) for k in range(0, count, 100)
        ]
    return torch.cat(parts).numpy(), labels


def _claim(out: Path, fingerprint: str) -> None:
    """From now on `out` is about tiles with this fingerprint. Raises `AlreadyThere` where it is or may be about others."""
    kept = out / "tiles.sha256"
    known = kept.read_text().strip() if kept.exists() else None
    if known is None and not any((out / name).exists() for name in ("tiles", "real.npz", "yardsticks.json")):
        durable.make_directory(out, mode=0o755)
        durable.replace(kept, f"{fingerprint}\n".encode(), mode=0o644)
    elif known != fingerprint:
        told = "does not say of which tiles it was made" if known is None else "was made of other tiles than --data holds"
        raise AlreadyThere(f"{out} {told}; choose another --out")


def _fingerprint(data: Path, tiles: TileSet) -> str:
    """SHA-256 over every tile's place, class, patient and content."""
    hasher = hashlib.sha256()
    for tile in tiles.tiles:
        content = hashlib.sha256(tile.path.read_bytes()).hexdigest()
        hasher.update(f"{tile.path.relative_to(data)}\0{tile.class_index}\0{tile.patient}\0{content}\n".encode())
    return hasher.hexdigest()


def _split(data: Path, tiles: TileSet, target: Path) -> Path:
    """The training patients' folder, marked so that the engine refuses the others; made once, whole or not at all."""
    if not target.exists():
        half = target.with_name(f"{target.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        roles = hold_out(tiles, HELD_OUT, 0.0, SPLIT_SEED)
        parts = [Part("training", "train", only(tiles, roles, "train").tiles), *held_out_parts(tiles, roles)]
        write_parts(data, parts, half)
        half.rename(target)
    return target / "training"
