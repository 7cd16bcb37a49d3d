"""Every objective's losses and every heads' class term, against values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from histofed.models.networks import Judgement
from histofed.training.losses import MARGIN, TEMPERATURE, d2d_cross_entropy, discriminator_loss, generator_loss, judged
from histofed.training.objectives import OBJECTIVES
from histofed.training.rules import Rules

LN2 = math.log(2)
ACGAN = Rules()
ONE_CLASS = torch.tensor([0])


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def _said(*validity: float, classes: Tensor | None = None) -> Judgement:
    count = len(validity)
    logits = torch.zeros(count, 2) if classes is None else classes
    return Judgement(torch.tensor(validity, dtype=torch.float32, requires_grad=True), logits, torch.zeros(count, 3))


def _rules(name: str, **changes: object) -> Rules:
    """Projection heads without projections: the adversarial terms alone."""
    objective = OBJECTIVES[name]
    return replace(Rules(objective, heads="projection"), **changes)  # type: ignore[arg-type]  # fields by name


def test_ignorance_costs_what_the_formula_says() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    nothing = _said(0, 0, 0, 0)
    assert generator_loss(nothing, labels, ACGAN).item() == pytest.approx(0.5 * (LN2 + LN2))
    assert discriminator_loss(nothing, labels, nothing, labels, ACGAN).item() == pytest.approx(0.5 * (LN2 + 0.5 * LN2))


def test_confidence_in_the_right_class_is_not_bounded_away_from_zero() -> None:
    """With softmax before cross-entropy the class loss could not fall below .313."""
    sure = _said(40.0, classes=torch.tensor([[40.0, -40.0]]))
    assert generator_loss(sure, torch.tensor([0]), ACGAN).item() == pytest.approx(0, abs=1e-6)
    assert generator_loss(sure, torch.tensor([1]), ACGAN).item() == pytest.approx(40, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        # reals 2 and 0, fakes -1 and 3
        ("cgan", (_softplus(1) + _softplus(-3)) / 2, 0.5 * ((_softplus(-2) + LN2) / 2 + (_softplus(-1) + _softplus(3)) / 2)),
        ("wgan-gp", -1.0, -1.0 + 1.0),
        ("hinge", -1.0, (0 + 1) / 2 + (0 + 4) / 2),
        ("relativistic", (_softplus(3) + _softplus(-3)) / 2, (_softplus(-3) + _softplus(3)) / 2),
    ],
)
def test_adversarial_terms(name: str, generator: float, discriminator: float) -> None:
    labels, rules = torch.tensor([0, 1]), _rules(name)
    real, fake = _said(2, 0), _said(-1, 3)
    found = generator_loss(fake, labels, rules, judged(real, labels, rules))
    assert found.item() == pytest.approx(generator)
    assert discriminator_loss(real, labels, fake, labels, rules).item() == pytest.approx(discriminator)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_player_wants_the_opposite(name: str) -> None:
    rules = replace(Rules(OBJECTIVES[name]), heads="class")
    real, fake = _said(0.1), _said(-0.1)

    def slope(of: Judgement, loss: Tensor) -> float:
        return float(torch.autograd.grad(loss, of.validity_B)[0].sum())

    assert slope(fake, generator_loss(fake, ONE_CLASS, rules, real.validity_B.detach())) < 0
    assert slope(fake, discriminator_loss(real, ONE_CLASS, fake, ONE_CLASS, rules)) > 0
    assert slope(real, discriminator_loss(real, ONE_CLASS, fake, ONE_CLASS, rules)) < 0


def test_smoothing_is_one_sided_and_flipped_reals_are_called_fakes() -> None:
    labels = torch.tensor([0, 0])
    smooth = _rules("cgan", real_target=0.9)
    real, fake = _said(2, 2), _said(-1, -1)
    reals = 0.9 * _softplus(-2) + 0.1 * _softplus(2)
    expected = 0.5 * (reals + _softplus(-1))
    assert discriminator_loss(real, labels, fake, labels, smooth).item() == pytest.approx(expected)
    assert generator_loss(fake, labels, smooth).item() == pytest.approx(_softplus(1)), "the generator's target stays 1"
    flipped = discriminator_loss(real, labels, fake, labels, smooth, torch.tensor([True, False]))
    assert flipped.item() == pytest.approx(0.5 * ((_softplus(2) + reals) / 2 + _softplus(-1)))


def test_projection_heads_judge_the_tile_as_one_of_its_class() -> None:
    said = _said(1, 1, classes=torch.tensor([[5.0, -5.0], [5.0, -5.0]]))
    assert judged(said, torch.tensor([0, 1]), _rules("cgan")).tolist() == [6, -4]
    assert judged(said, torch.tensor([0, 1]), ACGAN).tolist() == [1, 1]


def test_data_to_data_cross_entropy_by_hand() -> None:
    """Three unit vectors of the plane, two classes."""
    cosines = torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.0, 0.9]])
    embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    labels = torch.tensor([0, 0, 1])

    def one(own: float, *others: float) -> float:
        near = math.exp(min(own - MARGIN, 0) / TEMPERATURE)
        return -math.log(near / (near + sum(math.exp(max(other - (1 - MARGIN), 0) / TEMPERATURE) for other in others)))

    expected = (one(0.5, 0.6) + one(1.0, 0.8) + one(0.9, 0.6, 0.8)) / 3
    assert d2d_cross_entropy(cosines, embedding, labels).item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_one_class_costs_nothing_in_d2d() -> None:
    cosines = torch.tensor([[0.1, 0.2]], requires_grad=True)
    loss = d2d_cross_entropy(cosines, torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(0)
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()


def test_the_generators_class_term_grows_to_its_weight() -> None:
    rules = replace(Rules(OBJECTIVES["hinge"]), class_weight=2.0, class_ramp=4)
    losses = [generator_loss(_said(0), ONE_CLASS, rules, step=step).item() for step in (0, 1, 3, 100)]
    assert losses == pytest.approx([0.5 * LN2, LN2, 2 * LN2, 2 * LN2])
