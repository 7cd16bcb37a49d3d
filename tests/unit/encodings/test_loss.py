"""What an encoding changed: measured as it is, and a bound for what it does to the aggregate."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histofed.base.encoding import Encoding
from histofed.encodings.loss import Tally
from histofed.encodings.words import transform
from histofed.statements import METRIC_NAME

FLOAT32 = np.dtype("<f4")


def test_nothing_is_nothing() -> None:
    tally = Tally()
    assert (tally.norm, dict(tally.loss(1.0).metrics)) == (
        0.0,
        {"encoding_error_max": 0.0, "encoding_error_rms": 0.0, "encoding_error_relative": 0.0, "encoding_ratio": 1.0},
    )


def test_pieces_add_up() -> None:
    draw = np.random.default_rng(0)
    base, trained, decoded = draw.standard_normal((3, 1000)).astype(np.float32)
    whole, parts = Tally(), Tally()
    whole.add(trained, decoded, base)
    for part in np.array_split(np.arange(1000), 7):
        parts.add(trained[part], decoded[part], base[part])
    assert parts.norm == pytest.approx(whole.norm)
    assert dict(parts.loss(0.5).metrics) == pytest.approx(dict(whole.loss(0.5).metrics))


def test_values_that_are_not_finite_have_no_norm() -> None:
    one = np.ones(3, np.float32)
    for bad in (np.inf, -np.inf, np.nan):
        tally = Tally()
        tally.add(one, np.array([1, bad, 1], np.float32), one)
        assert tally.norm == np.inf


def test_metrics_may_be_called_that() -> None:
    assert all(re.fullmatch(METRIC_NAME, name) for name in Tally().loss(1.0).metrics)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), sites=st.integers(1, 5), encoding=st.sampled_from(["bfloat16", "bfloat16-delta"]))
def test_the_means_of_the_sites_bound_the_aggregates_error(seed: int, sites: int, encoding: Encoding) -> None:
    """What `rounds show` tells the operator, who never sees a float32 update."""
    draw = np.random.default_rng(seed)
    base = draw.standard_normal(500).astype(np.float32)
    shares = draw.dirichlet(np.ones(sites))
    coder = transform(encoding, FLOAT32)
    exact, rounded, losses = np.zeros(500), np.zeros(500), []
    for share in shares:
        trained = (base + draw.standard_normal(500) * 0.01).astype(np.float32)
        decoded = coder.decode(coder.encode(trained, base), base)
        exact, rounded = exact + share * trained, rounded + share * decoded
        tally = Tally()
        tally.add(trained, decoded, base)
        losses.append(tally.loss(0.5))
    error = rounded - exact
    told = [
        sum(share * getattr(loss, name) for share, loss in zip(shares, losses, strict=True)) for name in ("largest", "rms")
    ]
    assert np.abs(error).max() <= told[0] * (1 + 1e-9)
    assert np.sqrt(np.square(error).mean()) <= told[1] * (1 + 1e-9)
