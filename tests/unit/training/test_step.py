"""Every objective against every kind of discriminator, and what a step must and must not touch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from histofed.base.clock import FakeClock
from histofed.base.errors import Cancelled
from histofed.models.ranges import to_model_range
from histofed.training.batches import Batches
from histofed.training.checkpoint import CheckpointStore
from histofed.training.contest import Contest
from histofed.training.deal import deal
from histofed.training.loop import Step, train
from histofed.training.objectives import OBJECTIVES
from histofed.training.rules import Augmentation, LeCam, Rules
from histofed.training.step import play
from tests.unit.training.conftest import make_batches

MakeContest = Callable[..., Contest]
DISCRIMINATORS = ("cnn", "vit-mini", "test_resnet", "tiny_swin_of_the_tests")


def _rules(name: str, **changes: object) -> Rules:
    row = OBJECTIVES[name]
    return replace(Rules(row, heads=row.heads), **changes)  # type: ignore[arg-type]  # fields by name


def _options(rules: Rules, discriminator: str) -> dict[str, object]:
    batch_norm = discriminator in ("cnn", "test_resnet")
    return {"norm": "group"} if rules.objective.gradient_penalty and batch_norm else {}


def _train(
    contest: Contest,
    batches: Batches,
    folder: Path,
    rules: Rules,
    steps: int = 2,
    classes: int = 2,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float], dict[str, bytes]]:
    store = CheckpointStore(folder, "work")
    seen: list[Step] = []
    losses = train(contest, batches, steps, classes, store, FakeClock(), seen.append, stop, rules)
    store.clear()
    assert seen[-1].number == steps
    return dict(losses), {name: array.tobytes() for name, array in contest.state().items()}


@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_every_discriminator(
    make_contest: MakeContest, tmp_path: Path, objective: str, discriminator: str
) -> None:
    row = replace(OBJECTIVES[objective], critic_steps=1 + (objective == "wgan-gp"))
    rules = _rules(objective, objective=row)
    contest = make_contest(discriminator=discriminator, rules=rules, classes=5, **_options(rules, discriminator))
    before = {name: array.copy() for name, array in contest.state().items()}
    losses, _ = _train(contest, make_batches(5, size=5), tmp_path, rules, classes=5)
    penalty = {"penalty"} if objective in ("wgan-gp", "relativistic") else set()
    assert losses.keys() == {"generator_loss", "discriminator_loss"} | penalty
    after = contest.state()
    unmoved = {
        name
        for name, _ in contest.generator.named_parameters()
        if (after[f"generator.{name}"] == before[f"generator.{name}"]).all()
    }
    # dropout or a class that was not asked for may leave a tensor alone, never a convolution
    assert not any("weight" in name and "class" not in name for name in unmoved)
    assert any((after[name] != before[name]).any() for name in before if name.startswith("discriminator.heads"))


@pytest.mark.parametrize("heads", ["class", "projection", "reacgan"])
@pytest.mark.parametrize("objective", ["wgan-gp", "hinge", "relativistic"])
def test_free_objectives_take_every_kind_of_heads(
    make_contest: MakeContest, batches: Batches, tmp_path: Path, objective: str, heads: str
) -> None:
    row = replace(OBJECTIVES[objective], critic_steps=1)
    rules = _rules(objective, objective=row, heads=heads)
    _train(make_contest(discriminator="vit-mini", rules=rules), batches, tmp_path, rules)


FULL = {
    "augmentation": Augmentation(),
    "clip_gradient": 1.0,
    "penalty_every": 2,
    "textures": 0.5,
    "accumulate": 2,
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_repeats_and_resumes_bit_for_bit(
    make_contest: MakeContest, batches: Batches, tmp_path: Path, objective: str
) -> None:
    rules = _rules(objective, objective=replace(OBJECTIVES[objective], critic_steps=1 + (objective == "wgan-gp")), **FULL)
    if rules.objective.has_level:
        rules = replace(rules, lecam=LeCam(), objective=replace(rules.objective, r1=0.5, fake_labels="even"))
    if rules.objective.loss == "bce":
        rules = replace(rules, real_target=0.9, flip_real=0.25)

    def fresh() -> Contest:
        return make_contest(rules=rules, generator="deep", norm="none", spectral_norm=True, ema=0.9)

    whole = _train(fresh(), batches, tmp_path, rules, steps=5)
    folder = tmp_path / "task"
    folder.mkdir()
    for after in (2, 1):
        answers = iter([False] * after + [True])
        with pytest.raises(Cancelled):
            _train(fresh(), batches, folder, rules, steps=5, stop=answers.__next__)
        torch.randn(3)
    assert _train(fresh(), batches, folder, rules, steps=5) == whole


def test_the_generators_move_computes_no_gradient_of_the_discriminator(make_contest: MakeContest, batches: Batches) -> None:
    contest, rules = make_contest(), Rules()
    moved: list[bool] = []
    step = contest.generator_adam.step

    def watched() -> None:
        moved.append(any(parameter.grad is not None for parameter in contest.discriminator.parameters()))
        step()

    contest.generator_adam.step = watched  # type: ignore[method-assign,assignment]  # watching one call
    pixels, labels = batches.at(0)
    play(contest, rules, deal(to_model_range(pixels), labels, 8, 2, rules), 0)
    assert moved == [False]
    assert all(parameter.requires_grad for parameter in contest.discriminator.parameters())
    assert all(parameter.grad is not None for parameter in contest.discriminator.parameters())


def test_fakes_are_drawn_once_for_both_moves(make_contest: MakeContest, batches: Batches) -> None:
    contest, rules = make_contest(), Rules()
    calls = []
    contest.generator.register_forward_hook(lambda *_: calls.append(1))
    pixels, labels = batches.at(0)
    play(contest, rules, deal(to_model_range(pixels), labels, 8, 2, rules), 0)
    assert len(calls) == 1


def test_a_critic_moves_several_times_for_each_move_of_the_generator(
    make_contest: MakeContest, batches: Batches, tmp_path: Path
) -> None:
    rules = _rules("wgan-gp", objective=replace(OBJECTIVES["wgan-gp"], critic_steps=3))
    contest = make_contest(rules=rules, norm="none")
    _train(contest, batches, tmp_path, rules, steps=7)
    steps = [
        contest.state()[f"adam.{name}.step"].item()
        for name in ("generator.to_rgb.bias", "discriminator.heads.validity.bias")
    ]
    assert steps == [2, 7]


def test_accumulated_parts_give_the_gradient_of_the_whole(make_contest: MakeContest, tmp_path: Path) -> None:
    """Without batch norm, dropout and augmentation, up to rounding."""
    ends = []
    for parts in (1, 2, 4):
        rules = _rules("hinge", accumulate=parts)
        contest = make_contest(rules=rules, generator="deep", norm="none", dropout=0.0)
        losses, _ = _train(contest, make_batches(2, size=8), tmp_path, rules, steps=1)
        ends.append((losses, contest.discriminator_adam.state[contest.discriminator.get_parameter("heads.validity.weight")]))
    for losses, state in ends[1:]:
        assert losses == pytest.approx(ends[0][0], rel=1e-4)
        torch.testing.assert_close(state["exp_avg"], ends[0][1]["exp_avg"], rtol=1e-3, atol=1e-6)


def test_two_rates_are_kept_apart(make_contest: MakeContest, batches: Batches, tmp_path: Path) -> None:
    """TTUR: the first step of Adam is as long as the rate."""
    rules = _rules("hinge")
    contest = make_contest(rules=rules, discriminator="vit-mini", generator="deep")
    contest.discriminator_adam.param_groups[0]["lr"] = 4e-3
    contest.generator_adam.param_groups[0]["lr"] = 1e-3
    players = (contest.generator, contest.discriminator)
    before = [[parameter.detach().clone() for parameter in player.parameters()] for player in players]
    _train(contest, batches, tmp_path, rules, steps=1)
    moves = [
        max(float((new.detach() - old).abs().max()) for new, old in zip(player.parameters(), olds, strict=True))
        for player, olds in zip(players, before, strict=True)
    ]
    assert moves == pytest.approx([1e-3, 4e-3], rel=0.01)


def test_a_gradient_is_clipped_to_its_norm(make_contest: MakeContest, batches: Batches, tmp_path: Path) -> None:
    """One step of Adam from nothing leaves a tenth of the gradient in its first moment (beta 0.5: half)."""
    rules = _rules("hinge", clip_gradient=1e-3)
    contest = make_contest(rules=rules, discriminator="vit-mini")
    _train(contest, batches, tmp_path, rules, steps=1)
    for adam in (contest.generator_adam, contest.discriminator_adam):
        moments = torch.cat([state["exp_avg"].flatten() for state in adam.state.values()])
        assert 2 * moments.norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("precision", "objective"),
    # fp16 takes seconds a step on a CPU, so one objective stands for all: the one with penalties
    [("bf16", "acgan"), ("bf16", "wgan-gp"), ("bf16", "relativistic"), ("fp16", "relativistic")],
)
def test_sixteen_bits(make_contest: MakeContest, batches: Batches, tmp_path: Path, precision: str, objective: str) -> None:
    row = replace(OBJECTIVES[objective], critic_steps=1)
    rules = _rules(objective, objective=row, precision=precision, clip_gradient=10.0)
    losses, end = _train(_small(make_contest, rules), batches, tmp_path, rules, steps=2)
    full = replace(rules, precision="fp32")
    reference, other = _train(_small(make_contest, full), batches, tmp_path, full, steps=2)
    assert losses["discriminator_loss"] == pytest.approx(reference["discriminator_loss"], abs=0.25)
    assert losses != reference, "16 bits were used"
    assert {name: len(data) for name, data in end.items() if not name.startswith("scale")} == {
        name: len(data) for name, data in other.items()
    }, "weights stay in 32 bits"
    assert ("scale.losses" in end) == (precision == "fp16")


def _small(make_contest: MakeContest, rules: Rules) -> Contest:
    return make_contest(discriminator="cnn", rules=rules, generator="deep", norm="none")


def test_fp16_resumes_with_its_scale(make_contest: MakeContest, batches: Batches, tmp_path: Path) -> None:
    rules = _rules("hinge", precision="fp16")
    whole = _train(_small(make_contest, rules), batches, tmp_path, rules)
    answers = iter([False, True])
    with pytest.raises(Cancelled):
        _train(_small(make_contest, rules), batches, tmp_path, rules, stop=lambda: next(answers))
    assert _train(_small(make_contest, rules), batches, tmp_path, rules) == whole


def test_lecam_holds_logits_near_the_other_sides_average(
    make_contest: MakeContest, batches: Batches, tmp_path: Path
) -> None:
    gaps = []
    for weight in (0.0, 10.0):
        rules = _rules("hinge", lecam=LeCam(weight, 0.9))
        contest = make_contest(discriminator="vit-mini", rules=rules, rate=2e-3)
        _train(contest, batches, tmp_path, rules, steps=15)
        real, fake = contest.state()["lecam.anchors"].tolist()
        gaps.append(abs(real - fake))
    assert gaps[1] < 0.5 * gaps[0]


def test_the_average_follows_the_generator(make_contest: MakeContest, batches: Batches, tmp_path: Path) -> None:
    contest = make_contest(ema=0.5)
    start = contest.generator.get_parameter("to_rgb.weight").detach().clone()
    _train(contest, batches, tmp_path, Rules(), steps=1)
    assert contest.ema is not None
    now, average = (player.get_parameter("to_rgb.weight") for player in (contest.generator, contest.ema.generator))
    torch.testing.assert_close(average.detach(), 0.1 * start + 0.9 * now.detach())  # min(.5, 1/10) of the start
    statistics = contest.ema.generator.get_buffer("norm.running_mean")
    assert not torch.equal(statistics, torch.zeros_like(statistics))
    assert not contest.ema.generator.training
