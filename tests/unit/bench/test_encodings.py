"""The bench of encodings counts what it says it counts, on a round that is made by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bench.encodings.measure import both_ways, costs, rows
from bench.encodings.rehearsal import Round
from histofed import weights


@pytest.fixture
def one(tmp_path: Path) -> Round:
    """Two sites that went the same way, so that rounding does not cancel."""
    draw = np.random.default_rng(0)
    base = draw.standard_normal(50_000).astype(np.float32)
    step = (1e-3 * draw.standard_normal(base.size)).astype(np.float32)
    weights.save(tmp_path / "base", {"w": base})
    for name in ("north", "south", "model"):
        weights.save(tmp_path / name, {"w": base + step})
    updates = {site: tmp_path / site for site in ("north", "south")}
    return Round(1, tmp_path / "base", updates, tmp_path / "model", tmp_path / "server", None)


def test_costs_are_those_of_each_encoding(one: Round, tmp_path: Path) -> None:
    found = {cost.encoding: cost for cost in costs(one, tmp_path)}
    assert set(found) == {"bfloat16", "float32-delta", "bfloat16-delta"}
    assert all(cost.same and cost.encode_ms > 0 and cost.decode_ms > 0 for cost in found.values())
    assert found["float32-delta"].relative == found["float32-delta"].largest == 0.0
    # uniform within half a unit of eight bits
    assert 1e-3 < found["bfloat16-delta"].relative < 2.0**-8
    assert found["bfloat16"].relative > 0.1, "a thousandth of a weight is lost in its own rounding"
    assert found["bfloat16-delta"].ratio < 0.5 < found["float32-delta"].ratio < 1


def test_a_round_is_counted_both_ways(one: Round, tmp_path: Path) -> None:
    size = one.base.stat().st_size
    (tmp_path / "up").write_bytes(bytes(size // 4))
    (tmp_path / "down").write_bytes(bytes(size // 2))
    coded = dataclasses.replace(one, updates=dict.fromkeys(one.updates, tmp_path / "up"), step=tmp_path / "down")
    assert both_ways(coded) == pytest.approx((1 / 4 + 1 / 2) / 2, rel=1e-3)


def test_the_target_is_the_one_that_was_set(one: Round, tmp_path: Path) -> None:
    judged = [row for row in rows(costs(one, tmp_path), "by hand") if row.met is not None]
    assert [(row.name, row.target, row.met) for row in judged] == [
        ("update bytes / float32 (bfloat16-delta, by hand)", 0.5, True)
    ]
