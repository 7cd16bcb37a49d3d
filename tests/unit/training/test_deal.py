"""Which classes fakes are asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from histofed.training.deal import deal
from histofed.training.objectives import OBJECTIVES
from histofed.training.rules import Rules


def _asking(kind: str) -> Rules:
    row = replace(OBJECTIVES["hinge"], fake_labels=kind)  # type: ignore[arg-type]  # by name
    return Rules(row, heads=row.heads)


@pytest.mark.parametrize(("kind", "expected"), [("even", {2}), ("uniform", None), ("real", {0, 4})])
def test_classes_that_fakes_are_asked_for(kind: str, expected: set[int] | None) -> None:
    torch.manual_seed(0)
    rules = _asking(kind)
    labels = torch.tensor([1, 1, 1, 1])
    dealt = [deal(torch.zeros(4, 3, 2, 2), labels, 3, 2, rules).asked_B for _ in range(30)]
    counts = {int((asked == k).sum()) for asked in dealt for k in (0, 1)}
    assert counts == expected if expected else len(counts) > 3


def test_even_classes_favour_none_in_a_batch_that_they_do_not_divide() -> None:
    torch.manual_seed(0)
    rules = _asking("even")
    asked = torch.cat([deal(torch.zeros(7, 3, 2, 2), torch.zeros(7), 3, 5, rules).asked_B for _ in range(500)])
    assert asked.bincount().min() > 0.9 * asked.bincount().max()
