"""Batches are a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from histofed.training.batches import Batches, BatchPlan, Deck


@given(st.integers(1, 12), st.integers(0, 50), st.integers(0, 40), st.integers(0, 2**63 - 1))
def test_a_deck_deals_every_card_before_any_again(size: int, begin: int, count: int, seed: int) -> None:
    deck = Deck(np.arange(size), seed)
    whole = deck.deal(0, 100)
    assert (deck.deal(begin, count) == whole[begin : begin + count]).all()
    for shuffle in range(100 // size):
        assert sorted(whole[shuffle * size : (shuffle + 1) * size]) == list(range(size))


def _batches(size: int, balanced: bool, flips: bool = False, seed: int = 1) -> Batches:
    labels = np.array([0] * 3 + [1] * 17)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 3, 4, 4), np.uint8)
    return Batches(pixels, labels, 2, BatchPlan(size, seed, balanced, flips))


@given(st.integers(1, 30), st.integers(0, 20))
def test_classes_take_turns(size: int, step: int) -> None:
    _, labels = _batches(size, balanced=True).at(step)
    assert len(labels) == size
    assert abs(int((labels == 0).sum()) - int((labels == 1).sum())) <= 1


@given(st.integers(1, 30))
def test_shuffled_batches_show_every_tile_once_per_epoch(size: int) -> None:
    batches = _batches(size, balanced=False)
    order = np.concatenate([batches.indices(step) for step in range(-(-60 // size))])
    for epoch in range(3):
        assert sorted(order[epoch * 20 : (epoch + 1) * 20]) == list(range(20))


def test_the_step_and_the_seed_decide() -> None:
    one, same, other = _batches(8, True, True), _batches(8, True, True), _batches(8, True, True, seed=2)
    for step in (5, 0, 5):
        assert torch.equal(one.at(step)[0], same.at(step)[0])
    assert not torch.equal(one.at(0)[0], one.at(1)[0])
    assert not torch.equal(one.at(0)[0], other.at(0)[0])


@pytest.mark.parametrize("flips", [False, True])
def test_orientations(flips: bool) -> None:
    """Each of the eight appears, each is a turn of the tile, and the tiles in memory stay as they are."""
    pixels = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(1, 3, 4, 4)
    eight = [np.rot90(base, k, (1, 2)) for base in (pixels[0], pixels[0, :, :, ::-1]) for k in range(4)]
    batches = Batches(pixels, np.array([0]), 1, BatchPlan(64, 1, True, flips))
    shown, _ = batches.at(0)
    found = {next(k for k, one in enumerate(eight) if (tile.numpy() == one).all()) for tile in shown}
    assert found == (set(range(8)) if flips else {0})
    assert (pixels.ravel() == np.arange(48)).all()


def test_some_tiles_are_always_the_same_ones_with_their_labels_and_draw_no_random_numbers() -> None:
    pixels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1) * np.ones((1, 3, 4, 4), np.uint8)
    pixels.setflags(write=False)
    batches = Batches(pixels, np.arange(20) % 2, 2, BatchPlan(4, 1, True, False))
    torch.manual_seed(0)
    expected = torch.randn(1)
    torch.manual_seed(0)
    some, labels = batches.some(8)
    assert torch.equal(torch.randn(1), expected)
    assert len({int(tile[0, 0, 0]) for tile in some}) == len(some) == 8
    assert torch.equal(some[:, 0, 0, 0] % 2, labels)
    assert torch.equal(batches.some(8)[0], some)
    assert len(batches.some(100)[0]) == 20
