"""Devices, by name."""

from __future__ import annotations

import pytest
import torch

from histofed.base.errors import ConfigError
from histofed.training.runtime import prepare


def test_the_seed_decides() -> None:
    draws = []
    for seed in (2**63 - 1, 2**63 - 1, 4):
        assert prepare("cpu", 1, seed).type == "cpu"
        draws.append(torch.randn(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.are_deterministic_algorithms_enabled()


def test_auto_finds_a_device() -> None:
    assert prepare("auto", 1, 1).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["abacus", "mps", "cuda:99"])
def test_what_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="use"):
        prepare(name, 1, 1)
