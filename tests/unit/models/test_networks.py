"""Which tensors of a network may be shared, and loading them back."""

from __future__ import annotations

import pytest
import torch

from histofed.models.networks import floating_state, load_floating_state
from histofed.models.registry import build_discriminator, build_generator


def test_integer_counters_are_not_shared() -> None:
    generator = build_generator("paper-cnn", 32, 2, 8)
    shared = floating_state(generator)
    assert generator.state_dict().keys() - shared.keys() == {
        f"{norm}.num_batches_tracked" for norm in ("norm", "up1.2", "up2.2")
    }
    assert "norm.running_mean" in shared


def test_constants_of_a_trunk_are_not_shared() -> None:
    assert not {"mean", "std"} & floating_state(build_discriminator("vit-mini", 32, 2)).keys()


def test_state_comes_back() -> None:
    one, other = (build_generator("paper-cnn", 32, 2, 8) for _ in range(2))
    one(torch.randn(4, 8), torch.tensor([0, 1, 0, 1]))  # moves the running statistics
    load_floating_state(other, floating_state(one))
    assert all(torch.equal(tensor, floating_state(other)[name]) for name, tensor in floating_state(one).items())


def test_tensors_of_another_network_are_refused() -> None:
    generator = build_generator("paper-cnn", 32, 2, 8)
    state = dict(floating_state(generator))
    with pytest.raises(ValueError, match=r"linear\.weight has shape"):
        load_floating_state(generator, state | {"linear.weight": torch.zeros(3)})
    del state["to_rgb.bias"]
    with pytest.raises(KeyError, match=r"to_rgb\.bias"):
        load_floating_state(generator, state)
