"""The distance against closed forms, against the formula written out, and against what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histofed.base.errors import BadData
from histofed.evaluation.frechet import Features, frechet_distance


def _whitened(count: int, length: int, seed: int) -> Features:
    """Vectors with mean 0 and covariance 1, exactly."""
    drawn = np.random.default_rng(seed).normal(size=(count, length))
    drawn -= drawn.mean(0)
    q, _ = np.linalg.qr(drawn)
    whitened: Features = q * np.sqrt(count - 1)
    return whitened


def test_moved_and_stretched_normals_have_the_distance_of_the_closed_form() -> None:
    a = _whitened(200, 5, 1)
    scale, move = np.array([1.0, 2.0, 3.0, 0.5, 0.0]), np.array([0.0, 1.0, -2.0, 0.0, 4.0])
    b = _whitened(300, 5, 2) * scale + move
    expected = np.square(move).sum() + np.square(1 - scale).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_correlated_features_agree_with_the_formula_written_out() -> None:
    random = np.random.default_rng(3)
    a = random.normal(size=(400, 6)) @ random.normal(size=(6, 6)) + random.normal(size=6)
    b = random.normal(size=(500, 6)) @ random.normal(size=(6, 6))
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # the product is similar to a symmetric positive matrix: its eigenvalues are real and not negative
    root_trace = np.sqrt(np.abs(np.linalg.eigvals(covariance_a @ covariance_b).real)).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * root_trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_it_is_symmetric_not_negative_and_blind_to_a_rotation(n: int, m: int, length: int, seed: int) -> None:
    """Also with fewer tiles than features, where covariances are singular."""
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(n, length)), random.normal(size=(m, length)) + 1
    turn, _ = np.linalg.qr(random.normal(size=(length, length)))
    distance = frechet_distance(a, b)
    assert distance >= 0
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-7, abs=1e-7)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(distance, rel=1e-7, abs=1e-7)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-7)


def test_single_precision_features_are_computed_in_double() -> None:
    a = _whitened(50, 3, 4) + 1e4
    assert frechet_distance(a.astype(np.float32), a.astype(np.float32) + np.float32(1)) == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((5, 3)), np.zeros((5, 4)), "length 3 and 4"),
        (np.zeros((1, 3)), np.zeros((5, 3)), "at least two tiles"),
        (np.zeros((5, 3)), np.zeros(5), "the second set"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "not finite"),
    ],
)
def test_sets_that_do_not_compare_are_refused_in_words(a: Features, b: Features, words: str) -> None:
    with pytest.raises(BadData, match=words):
        frechet_distance(a, b)
