"""The Fréchet distance between two sets of feature vectors, each taken for a normal distribution.

    d² = |m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^½)        Dowson and Landau 1982; Heusel et al., arXiv 1706.08500, eq. 6

FID is this number on Inception's pool3 features and on nothing else; on other features it is a Fréchet distance of these
features, and numbers of different features never share a column. It depends on how many vectors there are: with N near the
dimension or below, it is larger than the distance of the distributions, so only numbers at the same N compare.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from histofed.base.errors import BadData

Features: TypeAlias = npt.NDArray[np.floating]
"""(N, F): a vector per tile."""


def frechet_distance(features_a: Features, features_b: Features) -> float:
    """The squared Fréchet distance d² of two sets, (N, F) and (M, F), as FID is reported; computed in float64.

    Raises `BadData` when the sets are not comparable: other lengths of vectors, fewer than two vectors, a number that is not
    finite.
    """
    a, b = _checked(features_a, "first"), _checked(features_b, "second")
    if a.shape[1] != b.shape[1]:
        raise BadData(
            f"features of length {a.shape[1]} and {b.shape[1]} do not compare; take both sets through the same feature net"
        )
    mean_a, mean_b = a.mean(0), b.mean(0)
    root_a, root_b = _root(a - mean_a), _root(b - mean_b)
    between = np.square(mean_a - mean_b).sum()
    within = np.square(root_a).sum() + np.square(root_b).sum()
    # with S = RᵀR the eigenvalues of S_a S_b are the squared singular values of R_a R_bᵀ: no root of a matrix that may be
    # singular, so nothing is added to its diagonal and nothing complex appears
    common = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(0.0, float(between + within - 2 * common))


def _root(centred_NF: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """R with RᵀR = the unbiased covariance; at most F rows."""
    rows = len(centred_NF)
    root: npt.NDArray[np.float64] = np.linalg.qr(centred_NF, mode="r") / np.sqrt(rows - 1)
    return root


def _checked(features: Features, which: str) -> npt.NDArray[np.float64]:
    if features.ndim != 2 or len(features) < 2:
        raise BadData(
            f"the {which} set of features has shape {features.shape}; a Fréchet distance takes (tiles, features) with at "
            "least two tiles"
        )
    if not np.isfinite(features).all():
        raise BadData(f"the {which} set of features holds numbers that are not finite; look at the tiles they came from")
    return features.astype(np.float64)
