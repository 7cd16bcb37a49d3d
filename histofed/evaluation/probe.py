"""A linear probe: what a classifier that sees only features learns from one set of tiles, judged on another.

Logistic regression on standardised features; it has one convex solution, so the probe measures its training tiles and not
luck. Judged by balanced accuracy, because accuracy rewards the answer that is always the larger class (`paper.md` §3).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from histofed.base.errors import BadData
from histofed.evaluation.frechet import Features

STRENGTH: Final = 0.01
"""scikit-learn's C: strong regularisation, because features are many and tiles of few patients are alike."""


def balanced_accuracy(labels_N: npt.NDArray[np.int64], answers_N: npt.NDArray[np.int64]) -> float:
    """The mean over the classes present of the share answered rightly; a constant answer scores 1 / classes."""
    return float(np.mean([(answers_N[labels_N == k] == k).mean() for k in np.unique(labels_N)]))


def probe(
    features_NF: Features, labels_N: npt.NDArray[np.int64], held_out_MF: Features, held_out_labels_M: npt.NDArray[np.int64]
) -> float:
    """Train on the first pair, judge on the second: its balanced accuracy. Raises `BadData` for a single class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels_N)) < 2 or len(np.unique(held_out_labels_M)) < 2:
        raise BadData("a probe needs tiles of at least two classes to learn from, and to be judged on")
    scale = StandardScaler().fit(features_NF)
    classifier = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=2000)
    classifier.fit(scale.transform(features_NF), labels_N)
    return balanced_accuracy(held_out_labels_M, classifier.predict(scale.transform(held_out_MF)))
