"""The GPU's bench, on a model that a CPU measures in seconds; where there is no GPU it says so and fails."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu
from bench.cache import tileset
from bench.script import Script
from histofed.base.errors import OutOfMemory
from histofed.recipes.gan.config import DiscriminatorConfig, GanConfig
from histofed.tiles import cache
from histofed.tiles.tileset import TileSet
from histofed.training.runtime import prepare

CPU = torch.device("cpu")
SMALL = GanConfig(
    image_size=32, steps=5, generator="deep", latent=8, flips=True, discriminator=DiscriminatorConfig(name="vit-mini")
)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    return tileset(None, 40, tmp_path_factory.mktemp("tiles"))


@pytest.fixture
def as_in_the_bench() -> Iterator[None]:
    prepare("cpu", 1, 1)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_every_row_is_measured_with_one_engine_at_a_time(
    tmp_path: Path, tiles: TileSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = weakref.WeakSet[gpu.Engine]()
    most = 0

    class Counted(gpu.Engine):
        def __init__(self, *arguments: Any) -> None:
            nonlocal most
            super().__init__(*arguments)  # which collects what is left of an earlier one
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(gpu, "Engine", Counted)
    case = gpu.Case(SMALL, batches=(2, 4), script_batch=2, steps=1, matrix=64)
    rows = gpu.measure(case, tiles, CPU, tmp_path / "profile.txt")
    rate, ratio, arithmetic, share = (row.value for row in rows)
    assert min(rate, ratio, arithmetic, share) > 0
    assert share == pytest.approx(arithmetic / (rows[3].baseline or 0), rel=1e-3)
    assert [row.target for row in rows] == [None, 5.0, None, 0.4]
    assert "convolution" in (tmp_path / "profile.txt").read_text()
    assert most == 1


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


def test_a_step_compares_textures_where_the_settings_do(tiles: TileSet, as_in_the_bench: None) -> None:
    decoded = cache.load(tiles, 32)
    losses = []
    for weight in (0.0, 6.0):
        torch.manual_seed(1)
        found = gpu.Engine(SMALL.model_copy(update={"batch": 8, "textures": weight}), decoded, CPU).step()
        assert isinstance(found, dict)
        losses.append(float(found["generator_loss"]))
    assert losses[1] > losses[0] + 0.5


def test_the_script_has_the_kernels_that_scripts_have(
    tiles: TileSet, as_in_the_bench: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    monkeypatch.setattr(Script, "step", lambda _: modes.append(torch.are_deterministic_algorithms_enabled()))
    gpu.script_rate(gpu.Case(SMALL, script_batch=2, steps=1), tiles, CPU)
    assert modes
    assert not any(modes)
    assert torch.are_deterministic_algorithms_enabled(), "the engine goes on with its own"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (RuntimeError("no compiler"), "torch.compile does not work here"),
        (torch.OutOfMemoryError("CUDA out of memory"), "batch 4 does not fit"),
    ],
)
def test_what_was_not_compiled_is_not_called_so(
    tiles: TileSet, as_in_the_bench: None, monkeypatch: pytest.MonkeyPatch, fault: Exception, why: str
) -> None:
    def fails(*_: object) -> None:
        raise fault

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", fails))
    rate = gpu.compiled_rate(gpu.Case(SMALL, steps=1), cache.load(tiles, 32), CPU, 4)
    assert isinstance(rate, str)
    assert why in rate


def test_a_card_too_small_for_any_batch_is_told(
    tiles: TileSet, as_in_the_bench: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: gpu.Engine) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu.Engine, "step", fails)
    with pytest.raises(OutOfMemory, match="batch 2 does not fit into this GPU's memory; measure on a larger one"):
        gpu.best_of(gpu.Case(SMALL, batches=(2, 4), steps=1), cache.load(tiles, 32), CPU)


def test_a_card_too_small_for_preset_default_is_told(
    tiles: TileSet, as_in_the_bench: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: gpu.Engine) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(gpu.Engine, "step", fails)
    with pytest.raises(OutOfMemory, match="preset default does not fit into this GPU's memory; measure on a larger one"):
        gpu.memory_of_default(tiles, CPU)
