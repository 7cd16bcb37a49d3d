"""Heads, by hand."""

from __future__ import annotations

import pytest
import torch

from histofed.base.errors import BadData
from histofed.models.heads import ProjectionHeads, UnitHeads, build_heads


def test_projection_heads_hold_a_vector_per_class() -> None:
    heads = ProjectionHeads(2, 3)
    with torch.no_grad():
        heads.validity.weight.copy_(torch.tensor([[1.0, 2.0]]))
        heads.validity.bias.fill_(0.5)
        heads.classes.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    answer = heads(torch.tensor([[3.0, 4.0]]))
    assert answer.validity_B.tolist() == [11.5]
    assert answer.classes_BK.tolist() == [[3, 4, 7]]


def test_unit_heads_answer_in_cosines() -> None:
    heads = UnitHeads(4, 3)
    answer = heads(torch.randn(5, 4) * 100)
    torch.testing.assert_close(answer.embedding_BE.norm(dim=1), torch.ones(5))
    assert answer.classes_BK.shape == (5, 3)
    assert answer.classes_BK.abs().max() <= 1
    with torch.no_grad():
        heads.proxies[1] = 7 * answer.embedding_BE[0]
        heads.embed.bias.zero_()
    assert heads(torch.zeros(1, 4)).classes_BK.isfinite().all(), "no direction is no error"


def test_unknown_heads_are_refused() -> None:
    with pytest.raises(BadData, match="use one of class, projection, reacgan"):
        build_heads("two", 4, 2)
