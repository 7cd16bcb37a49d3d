"""The GPU's bench, on a model that a CPU measures in seconds; where there is no GPU it says so and fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.cache import tileset
from histofed.recipes.gan.config import DiscriminatorConfig, GanConfig

CPU = torch.device("cpu")


@pytest.mark.slow
def test_every_row_is_measured(tmp_path: Path) -> None:
    small = GanConfig(
        image_size=32, steps=5, generator="deep", latent=8, flips=True, discriminator=DiscriminatorConfig(name="vit-mini")
    )
    case = gpu.Case(small, batches=(2, 4), script_batch=2, steps=1, matrix=64)
    tiles = tileset(None, 40, tmp_path / "tiles")
    rows = gpu.measure(case, tiles, CPU, tmp_path / "profile.txt")
    rate, ratio, arithmetic, share = (row.value for row in rows)
    assert min(rate, ratio, arithmetic, share) > 0
    assert share == pytest.approx(arithmetic / (rows[3].baseline or 0), rel=1e-3)
    assert [row.target for row in rows] == [None, 5.0, None, 0.4]
    assert "convolution" in (tmp_path / "profile.txt").read_text()


def test_arithmetic_is_counted_not_estimated() -> None:
    a, b = torch.randn(8, 16), torch.randn(16, 4)

    class Product:
        def step(self) -> object:
            return a @ b

    assert gpu.flops(Product()) == 2 * 8 * 16 * 4  # type: ignore[arg-type]  # all that is asked of an engine


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_green(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    assert "no GPU" in capsys.readouterr().err
