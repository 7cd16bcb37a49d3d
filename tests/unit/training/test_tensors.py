"""Bytes do not depend on how a tensor lies in memory."""

from __future__ import annotations

import numpy as np
import torch

from histofed.training.tensors import to_arrays, with_prefix


def test_channels_last_gives_the_same_bytes() -> None:
    tensor = torch.randn(2, 3, 4, 5)
    arrays = to_arrays({"a": tensor, "b": tensor.to(memory_format=torch.channels_last)})
    assert arrays["a"].tobytes() == arrays["b"].tobytes()


def test_copies_are_independent() -> None:
    tensor = torch.zeros(3)
    arrays = to_arrays({"x": tensor}, "p.")
    back = with_prefix(arrays | {"q.x": np.ones(1)}, "p.")
    tensor += 1
    assert arrays["p.x"].tolist() == [0, 0, 0]
    arrays["p.x"][:] = 2
    assert {name: value.tolist() for name, value in back.items()} == {"x": [0, 0, 0]}


def test_scalars_keep_their_shape() -> None:
    assert to_arrays({"step": torch.tensor(3.0)})["step"].shape == ()
