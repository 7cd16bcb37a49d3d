"""Clipping: the bound holds for what is stored, whatever rounding does; nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from histofed import weights
from histofed.base.errors import BadData, TrainingFailed
from histofed.privacy.clipping import Clipped, clip_file, shrink
from histofed.weights import Array


def clip(folder: Path, trained: dict[str, Array], base: dict[str, Array], bound: float) -> Clipped:
    weights.save(folder / "trained", trained)
    weights.save(folder / "base", base)
    return clip_file(folder / "trained", folder / "base", bound, folder / "update")


def model(seed: int, scale: float) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {
        "body.weight": (draw.standard_normal((70, 1000)) * scale).astype(np.float32),
        "head.bias": (draw.standard_normal(7) * scale).astype(np.float32),
        "temperature": np.array(scale, np.float32),
    }


def test_an_update_within_the_bound_is_left_alone(tmp_path: Path) -> None:
    base = model(1, 1.0)
    trained = {name: array + np.float32(1e-3) for name, array in base.items()}
    done = clip(tmp_path, trained, base, 10.0)
    assert not done.clipped
    assert done.norm == done.norm_before
    assert (tmp_path / "update").read_bytes() == (tmp_path / "trained").read_bytes()


@pytest.mark.parametrize("bound", [1e-7, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("base_scale", [1e-3, 1.0, 1e4])
def test_what_is_stored_is_never_above_the_bound(tmp_path: Path, bound: float, base_scale: float) -> None:
    base = model(1, base_scale)
    trained = {name: array + other for (name, array), other in zip(base.items(), model(2, 1.0).values(), strict=True)}
    done = clip(tmp_path, trained, base, bound)
    with weights.TensorFile(tmp_path / "update") as update, weights.TensorFile(tmp_path / "base") as old:
        measured = weights.difference(update, old).norm
    assert done.clipped
    assert done.norm_before > 250
    assert done.norm == measured <= bound


def test_the_direction_is_kept(tmp_path: Path) -> None:
    base = {name: np.zeros_like(array) for name, array in model(1, 1.0).items()}
    trained = model(2, 1.0)
    done = clip(tmp_path, trained, base, 1.0)
    update = weights.read(tmp_path / "update")
    assert done.norm == pytest.approx(1.0, rel=1e-6)
    for name, array in trained.items():
        np.testing.assert_allclose(update[name], array / done.norm_before, rtol=1e-6)


def test_types_and_bytes_are_kept(tmp_path: Path) -> None:
    base: dict[str, Array] = {"a": np.ones((3, 0), np.float32), "b": np.zeros(5, np.float16), "c": np.zeros(5, np.float64)}
    trained = {"a": base["a"], "b": base["b"] + np.float16(3), "c": base["c"] + 4}
    first = clip(tmp_path, trained, base, 1.0)
    once = (tmp_path / "update").read_bytes()
    assert clip(tmp_path, trained, base, 1.0) == first
    assert (tmp_path / "update").read_bytes() == once
    assert {name: array.dtype for name, array in weights.read(tmp_path / "update").items()} == {
        name: array.dtype for name, array in base.items()
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_training_is_said_so(tmp_path: Path, bad: float) -> None:
    base = model(1, 1.0)
    trained = {**base, "head.bias": np.full(7, bad, np.float32)}
    with pytest.raises(TrainingFailed, match=r"diverged.*head\.bias"):
        clip(tmp_path, trained, base, 1.0)
    assert not (tmp_path / "update").exists()


def test_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="unknown to the model"):
        clip(tmp_path, {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}, {"a": np.zeros(2, np.float32)}, 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, np.inf])
def test_a_bound_must_bound(tmp_path: Path, bound: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        clip_file(tmp_path / "a", tmp_path / "b", bound, tmp_path / "c")


floats = arrays.arrays(np.float32, 20, elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(floats, floats, st.floats(0, 0.999999))
def test_no_value_ends_further_from_its_base_than_its_clipped_delta(trained: Array, base: Array, scale: float) -> None:
    result = shrink(trained, base, scale)
    assert result.dtype == base.dtype
    allowed = np.abs(np.subtract(trained, base, dtype=np.float64) * scale)
    assert np.all(np.abs(np.subtract(result, base, dtype=np.float64)) <= allowed)
