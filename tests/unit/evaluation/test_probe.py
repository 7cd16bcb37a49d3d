"""The linear probe: learns what is linear, scores a constant answer as what it is."""

from __future__ import annotations

import numpy as np
import pytest

from histofed.base.errors import BadData
from histofed.evaluation.probe import balanced_accuracy, probe


def _drawn(count: int, apart: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return random.normal(size=(count, 8)) + apart * labels[:, None], labels


def test_separable_classes_are_learned_and_alike_ones_are_not() -> None:
    held_out = _drawn(400, 2.0, 2)
    assert probe(*_drawn(200, 2.0, 1), *held_out) > 0.95
    assert 0.35 < probe(*_drawn(200, 0.0, 1), *_drawn(400, 0.0, 2)) < 0.65


def test_a_constant_answer_scores_a_half_whatever_the_share_of_the_classes() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    assert balanced_accuracy(labels, np.zeros(100, np.int64)) == 0.5


def test_one_class_is_refused_in_words() -> None:
    features, _ = _drawn(10, 1.0, 1)
    with pytest.raises(BadData, match="at least two classes"):
        probe(features, np.zeros(10, np.int64), features, np.arange(10) % 2)
