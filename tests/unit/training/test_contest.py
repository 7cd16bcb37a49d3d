"""What a contest takes over from a state of another time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from histofed.training.contest import LEAST_SCALE, Contest
from histofed.training.rules import Rules

MakeContest = Callable[..., Contest]


@pytest.mark.parametrize(
    ("kept", "taken"), [(512.0, 512.0), (LEAST_SCALE, LEAST_SCALE), (LEAST_SCALE / 2, 65536.0), (0.0, 65536.0)]
)
def test_a_scale_that_fell_to_nothing_is_not_taken_over(make_contest: MakeContest, kept: float, taken: float) -> None:
    """Sites have kept such scales, of trainings in which no step was taken."""
    contest = make_contest(rules=Rules(precision="fp16"))
    contest.load({"scale.losses": np.array([[kept, 3], [256, 3]], np.float32)})
    assert contest.scalers is not None
    assert [scaler.get_scale() for scaler in contest.scalers] == [taken, 256]
