"""A sample sheet is a picture of the generator, the same for the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histofed.models.registry import build_generator
from histofed.training.sheet import draw_sheet


@pytest.mark.parametrize("size", [32, 64, 128])
def test_rows_by_class_columns_by_noise(tmp_path: Path, size: int) -> None:
    torch.manual_seed(0)
    generator = build_generator("paper-cnn", size, 3, 8)
    draw_sheet(generator, ("MSIH", "nonMSIH", "normal"), 4, 1, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.mode == "RGB"
        step = (96 if size < 96 else size) + (0 if size != 64 else 32) + 4
        assert sheet.height == 3 * step + 4
        pixels = np.asarray(sheet)
    left = pixels.shape[1] - 4 * step
    cells = [pixels[4 + r * step : r * step + step, left + c * step :][:, : step - 4] for r in range(3) for c in range(4)]
    assert len({cell.tobytes() for cell in cells}) == 12
    assert (pixels[:, :left] < 100).any(), "class names are written"


def test_the_seed_and_the_weights_decide(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = build_generator("paper-cnn", 32, 2, 8)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generator.train()  # whatever mode it was left in
        draw_sheet(generator, ("x", "y"), 2, seed, tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c
