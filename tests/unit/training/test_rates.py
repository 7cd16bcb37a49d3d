"""Rates: as built, half with each return, falling by the steps of the whole training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from histofed.training.muon import MuonAdam
from histofed.training.rates import Rates, rates_of
from histofed.training.rules import Decay, Rules
from tests.unit.training.conftest import MakeContest

FALLING = Rules(decay=Decay(after=100, half_life=50))


def test_without_a_decay_they_stay_but_for_returns(make_contest: MakeContest) -> None:
    contest = make_contest(rate=1e-3)
    rates = Rates(contest, Rules())
    rates.set(10**6, 0)
    assert _of(contest.generator_adam) == [1e-3]
    rates.set(5, 2)
    assert _of(contest.generator_adam) == _of(contest.discriminator_adam) == [0.25e-3]
    rates.set(6, 2)
    assert _of(contest.generator_adam) == [0.25e-3], "not again and again"


@pytest.mark.parametrize(("step", "share"), [(0, 1), (100, 1), (150, 0.5), (125, 0.5**0.5), (300, 1 / 16)])
def test_they_halve_from_a_step_on(make_contest: MakeContest, step: int, share: float) -> None:
    contest = make_contest(rate=1e-3)
    Rates(contest, FALLING).set(step, 0)
    assert _of(contest.generator_adam) == _of(contest.discriminator_adam) == [pytest.approx(1e-3 * share)]
    # the same step of the training, in a later round
    again = make_contest(rate=1e-3)
    Rates(again, replace(FALLING, steps_before=step)).set(0, 0)
    assert _of(again.generator_adam) == _of(contest.generator_adam)


def test_muons_rate_falls_with_adams(make_contest: MakeContest) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    contest = replace(make_contest(), generator_adam=MuonAdam(network, 1e-3, (0.5, 0.99), 8e-3))
    Rates(contest, FALLING).set(150, 1)
    assert rates_of(contest) == pytest.approx({"generator": 0.25e-3, "discriminator": 0.5e-4, "muon": 2e-3})


def _of(optimiser: torch.optim.Adam) -> list[float]:
    return [group["lr"] for group in optimiser.param_groups]
