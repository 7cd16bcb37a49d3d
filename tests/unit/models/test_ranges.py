"""One range for real and generated tiles."""

from __future__ import annotations

import torch

from histofed.models.ranges import to_model_range, to_uint8


def test_every_grey_level_comes_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    images = to_model_range(levels)
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(to_uint8(images), levels)


def test_the_input_is_not_changed_and_outliers_are_clipped() -> None:
    images = torch.tensor([-3.0, 0.0, 3.0])
    assert to_uint8(images).tolist() == [0, 128, 255]
    assert images.tolist() == [-3.0, 0.0, 3.0]
