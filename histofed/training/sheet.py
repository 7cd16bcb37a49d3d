"""A sample sheet: what a generator draws now, a row per class, the same noise down a column.

The generator is in evaluation mode, so that dropout is off and batch norm uses its running statistics: a sheet then does not
depend on how many samples are drawn together, and the same weights give the same picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from histofed.base import durable
from histofed.models.networks import Generator
from histofed.models.ranges import to_uint8

_EDGE: Final = 96
"""Smallest edge of a sample on the sheet, pixels; smaller ones are enlarged by a whole factor."""
_MARGIN: Final = 4
_FONT: Final = 16


def draw_sheet(generator: Generator, class_names: Sequence[str], columns: int, seed: int, target: Path) -> None:
    """Write a PNG to `target`, the same bytes for the same weights and seed. Raises `CannotWriteState`."""
    durable.replace(target, render_sheet(generator, class_names, columns, seed), mode=0o644)


def render_sheet(generator: Generator, class_names: Sequence[str], columns: int, seed: int) -> bytes:
    """The PNG. Noise comes from a source of its own: nobody else's random numbers are touched."""
    rows = _samples(generator, len(class_names), columns, seed)
    edge = rows.shape[2]
    factor = -(-_EDGE // edge)
    step = edge * factor + _MARGIN
    font = ImageFont.load_default(_FONT)
    left = int(max(font.getlength(name) for name in class_names)) + 3 * _MARGIN
    sheet = Image.new("RGB", (left + columns * step, _MARGIN + len(class_names) * step), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(class_names):
        top = _MARGIN + row * step
        pen.text((_MARGIN, top + step // 2), name, "black", font, anchor="lm")
        for column in range(columns):
            sample = Image.fromarray(rows[row, column]).resize((edge * factor,) * 2, Image.Resampling.NEAREST)
            sheet.paste(sample, (left + column * step, top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _samples(generator: Generator, classes: int, columns: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 (classes, columns, W, W, 3)."""
    noise = torch.Generator().manual_seed(seed)
    z_BZ = torch.randn(columns, generator.latent, generator=noise).repeat(classes, 1)
    labels_B = torch.arange(classes).repeat_interleave(columns)
    device = next(generator.parameters()).device
    generator.eval()
    with torch.inference_mode():
        pixels_BCHW = to_uint8(generator(z_BZ.to(device), labels_B.to(device))).cpu()
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = pixels_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels.reshape(classes, columns, *pixels.shape[1:])
