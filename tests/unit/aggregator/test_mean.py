"""The weighted mean: equal values are their own mean, and no mean lies outside."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregator.mean import WeightedMean
from histofed.weights import Array


@given(
    array=hnp.arrays(
        st.sampled_from([np.dtype(name) for name in ("<f2", "<f4", "<f8")]),
        st.integers(1, 40),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    counts=st.lists(st.integers(1, 10**9), min_size=1, max_size=9),
)
@settings(max_examples=300)
def test_one_update_or_equal_updates_give_exactly_their_bytes(array: Array, counts: list[int]) -> None:
    total = sum(counts)
    found = WeightedMean([count / total for count in counts]).of([array] * len(counts))
    assert found is not None
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


@given(
    arrays=st.lists(
        hnp.arrays(np.float32, 5, elements={"allow_nan": False, "allow_infinity": False}),
        min_size=2,
        max_size=6,
    ),
    counts=st.data(),
)
def test_a_mean_never_leaves_the_range_of_its_updates(arrays: list[Array], counts: st.DataObject) -> None:
    drawn = counts.draw(st.lists(st.integers(1, 1000), min_size=len(arrays), max_size=len(arrays)))
    found = WeightedMean([count / sum(drawn) for count in drawn]).of(arrays)
    assert found is not None
    assert (np.min(arrays, axis=0) <= found).all() and (found <= np.max(arrays, axis=0)).all()
