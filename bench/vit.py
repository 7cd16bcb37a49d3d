"""A model the size of ViT-B/16 (Dosovitskiy et al. 2021, 1,000 classes): 152 float32 tensors, 86.6 million weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from histofed import weights

_WIDTH, _MLP, _TOKENS, _CLASSES, _BLOCKS, _PATCH = 768, 3072, 197, 1000, 12, 16


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor's name and shape."""
    yield "cls_token", (1, 1, _WIDTH)
    yield "pos_embed", (1, _TOKENS, _WIDTH)
    yield "patch_embed.weight", (_WIDTH, 3, _PATCH, _PATCH)
    yield "patch_embed.bias", (_WIDTH,)
    for block in range(_BLOCKS):
        for name, inputs, outputs in (
            ("attn.qkv", _WIDTH, 3 * _WIDTH),
            ("attn.proj", _WIDTH, _WIDTH),
            ("mlp.fc1", _WIDTH, _MLP),
            ("mlp.fc2", _MLP, _WIDTH),
        ):
            yield f"blocks.{block}.{name}.weight", (outputs, inputs)
            yield f"blocks.{block}.{name}.bias", (outputs,)
        for name in ("norm1", "norm2"):
            yield f"blocks.{block}.{name}.weight", (_WIDTH,)
            yield f"blocks.{block}.{name}.bias", (_WIDTH,)
    yield "norm.weight", (_WIDTH,)
    yield "norm.bias", (_WIDTH,)
    yield "head.weight", (_CLASSES, _WIDTH)
    yield "head.bias", (_CLASSES,)


WEIGHTS = sum(math.prod(shape) for _, shape in shapes())
"""Weights of the model: 86,567,656."""
BYTES = 4 * WEIGHTS


def write(path: Path, seed: int) -> None:
    """A file of normally distributed weights; the same for the same seed."""
    draw = np.random.default_rng(seed)
    ordered = sorted(shapes())
    specs = [(name, "F32", shape) for name, shape in ordered]
    weights.save_stream(path, specs, (draw.standard_normal(math.prod(shape), np.float32) for _, shape in ordered))
