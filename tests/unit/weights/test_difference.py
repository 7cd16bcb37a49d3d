"""How far an update is from its base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histofed import weights
from histofed.base.errors import BadData
from histofed.weights import PIECE, TensorFile, check_same_meaning, difference


def test_the_difference_is_taken_over_all_tensors_in_double_precision(tmp_path: Path) -> None:
    large = np.full(PIECE + 5, 1e8, np.float32)
    weights.save(tmp_path / "base", {"a": large, "b": np.zeros(2, np.float16)})
    weights.save(tmp_path / "update", {"a": np.nextafter(large, np.float32(2e8)), "b": np.full(2, 3, np.float16)})
    with TensorFile(tmp_path / "update") as update, TensorFile(tmp_path / "base") as base:
        found = difference(update, base)
    assert found.norm == pytest.approx(((PIECE + 5) * 8.0**2 + 2 * 9.0) ** 0.5, rel=1e-12)
    assert found.not_finite == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_difference_that_is_not_finite_names_its_tensors(tmp_path: Path, value: float) -> None:
    weights.save(tmp_path / "base", {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)})
    weights.save(tmp_path / "update", {"a": np.zeros(2, np.float32), "b": np.array([1, value], np.float32)})
    with TensorFile(tmp_path / "update") as update, TensorFile(tmp_path / "base") as base:
        found = difference(update, base)
        assert difference(update, update).not_finite == ("b",), "also where both hold the same value"
    assert found.norm == np.inf
    assert found.not_finite == ("b",)


def test_only_floating_tensors_have_a_difference(tmp_path: Path) -> None:
    weights.save(tmp_path / "base", {"a": np.zeros(2, np.int32)})
    with (
        TensorFile(tmp_path / "base") as base,
        pytest.raises(BadData, match="of type I32 cannot be averaged; only floating tensors are shared"),
    ):
        check_same_meaning(base, base)
