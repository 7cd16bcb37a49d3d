"""One step of a contest: a batch of reals, as many fakes, the generator's move, the discriminator's move on the same fakes.

What is saved against the literal recipe: fakes are drawn and augmented once for both moves, and the generator's move
computes no gradient of the discriminator's weights, which is a quarter of the work. Called by `loop.train` alone.

A batch may pass through the networks in parts. Each then has random numbers of its own, told by the step and its place, so
that it does not matter which process of a team plays it, nor what else that process plays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import relu

from histofed.base.seeds import seed as seed_of
from histofed.models.networks import Judgement
from histofed.models.norms import spectral_norm_held
from histofed.training.augment import augment
from histofed.training.contest import Contest
from histofed.training.deal import Deal
from histofed.training.losses import discriminator_loss, generator_loss, judged
from histofed.training.moving import onto
from histofed.training.passes import Fakes, drawn_by, look, real_logits, seen, weights_held
from histofed.training.penalties import away_from_one, between, squared_gradient, twice_differentiable
from histofed.training.rules import LeCam, Rules
from histofed.training.team import ALONE, Team
from histofed.training.textures import Textures


@dataclass(frozen=True)
class _Turn:
    """What this process does in a step."""

    step: int
    mine: Sequence[tuple[int, Deal]]
    """Parts, each with its number."""
    count: int
    """Of all parts of the batch."""
    textures: Textures | None
    """Of the site's tiles, where the generator is to come near them."""
    seed: int | None
    """Of the parts' random numbers; None where the batch is one part, which goes on with those of the run."""

    @contextmanager
    def stream(self, move: str, part: int) -> Iterator[None]:
        """The random numbers of one part in one move."""
        if self.seed is not None:
            torch.manual_seed(seed_of("part", self.seed, move, part))
        yield


def play(
    contest: Contest, rules: Rules, dealt: Deal, step: int, team: Team = ALONE, textures: Textures | None = None
) -> dict[str, Tensor]:
    """Move both players, as far as it is their turn; returns each loss, detached, without penalties, and these apart.

    Every process of a team is given the whole deal, and has the same players and losses afterwards.
    """
    parts = dealt.parts(rules.accumulate)
    seed = int(torch.randint(2**62, ())) if len(parts) > 1 else None
    turn = _Turn(step, team.share(parts), len(parts), textures, seed)
    moves = (step + 1) % rules.objective.critic_steps == 0
    losses: dict[str, Tensor] = {}
    if moves:
        fakes, losses["generator_loss"] = _move_generator(contest, rules, turn, team)
    else:
        fakes = _drawn(contest, rules, turn)
    losses |= _move_discriminator(contest, rules, turn, fakes, team)
    if seed is not None:
        # wherever the parts have left it: every process goes on from here
        torch.manual_seed(seed_of("after", seed))
    return losses


def _drawn(contest: Contest, rules: Rules, turn: _Turn) -> list[Fakes]:
    """Fakes for a step in which the generator does not move."""
    fakes = []
    for number, part in turn.mine:
        with turn.stream("fakes", number), torch.no_grad():
            fakes.append(seen(drawn_by(contest, rules, part), rules, part))
    return fakes


def _move_generator(contest: Contest, rules: Rules, turn: _Turn, team: Team) -> tuple[list[Fakes], Tensor]:
    scaler = contest.scalers[0] if contest.scalers else None
    contest.generator_adam.zero_grad()
    fakes, total = [], torch.zeros((), device=contest.device)
    with weights_held(contest.discriminator), spectral_norm_held(contest.discriminator, turn.seed is not None):
        for number, part in turn.mine:
            with turn.stream("generator", number):
                drawn_BCHW = drawn_by(contest, rules, part)
                fake = seen(drawn_BCHW, rules, part)
                answer = look(contest, rules, fake.seen_BCHW)
                loss = generator_loss(answer, fake.asked_B, rules, real_logits(contest, rules, part), turn.step)
                if turn.textures is not None:
                    loss = loss + rules.textures * turn.textures.distance(drawn_BCHW, part.asked_B)
                _backward(loss / turn.count, scaler)
            fakes.append(Fakes(fake.seen_BCHW.detach(), fake.asked_B))
            total += loss.detach() / turn.count
    team.add_up([total, *_gradients(contest.generator)])
    _take_step(contest.generator, contest.generator_adam, scaler, rules)
    if contest.ema is not None:
        contest.ema.follow(contest.generator, turn.step // rules.objective.critic_steps)
    return fakes, total


def _move_discriminator(
    contest: Contest, rules: Rules, turn: _Turn, fakes: Sequence[Fakes], team: Team
) -> dict[str, Tensor]:
    penalised = rules.objective.has_penalty and turn.step % rules.penalty_every == 0
    scaler = contest.scalers[1] if contest.scalers else None
    contest.discriminator_adam.zero_grad()
    total, penalties = (torch.zeros((), device=contest.device) for _ in range(2))
    averages = torch.zeros(2, device=contest.device)
    with spectral_norm_held(contest.discriminator, turn.seed is not None):
        for (number, part), fake in zip(turn.mine, fakes, strict=True):
            with turn.stream("discriminator", number):
                real_BCHW = augment(part.real_BCHW, rules.augmentation)
                fake_BCHW = fake.seen_BCHW
                if penalised:
                    real_BCHW, fake_BCHW = (images.detach().requires_grad_() for images in (real_BCHW, fake_BCHW))
                with twice_differentiable(penalised):
                    on_real = look(contest, rules, real_BCHW, again=penalised)
                    on_fake = look(contest, rules, fake_BCHW, again=penalised)
                    loss = discriminator_loss(on_real, part.labels_B, on_fake, fake.asked_B, rules, _flipped(rules, part))
                    if rules.lecam is not None:
                        logits = judged(on_real, part.labels_B, rules), judged(on_fake, fake.asked_B, rules)
                        held, now = _lecam(contest, rules.lecam, *logits)
                        loss = loss + held
                        averages += now / turn.count
                    whole = loss
                    if penalised:
                        penalty = _penalty(contest, rules, part, fake, (real_BCHW, on_real), (fake_BCHW, on_fake))
                        whole = loss + penalty * rules.penalty_every
                        penalties += penalty.detach() / turn.count
                    _backward(whole / turn.count, scaler)
            total += loss.detach() / turn.count
    team.add_up([total, penalties, averages, *_gradients(contest.discriminator)])
    if rules.lecam is not None:
        contest.anchors.real_fake = _moved(contest.anchors.real_fake, averages, rules.lecam)
    _take_step(contest.discriminator, contest.discriminator_adam, scaler, rules)
    return {"discriminator_loss": total} | ({"penalty": penalties} if penalised else {})


def _penalty(
    contest: Contest,
    rules: Rules,
    part: Deal,
    fake: Fakes,
    real_seen: tuple[Tensor, Judgement],
    fake_seen: tuple[Tensor, Judgement],
) -> Tensor:
    objective = rules.objective
    total = torch.zeros((), device=contest.device)
    if objective.r1:
        images_BCHW, answer = real_seen
        total = total + objective.r1 / 2 * squared_gradient(judged(answer, part.labels_B, rules), images_BCHW).mean()
    if objective.r2:
        images_BCHW, answer = fake_seen
        total = total + objective.r2 / 2 * squared_gradient(judged(answer, fake.asked_B, rules), images_BCHW).mean()
    if objective.gradient_penalty:
        share_B = onto(contest.device, torch.rand(len(part.labels_B)))
        mixed_BCHW = between(real_seen[0], fake_seen[0], share_B)
        answer = look(contest, rules, mixed_BCHW, again=True)
        away_B = away_from_one(judged(answer, part.labels_B, rules), mixed_BCHW)
        total = total + objective.gradient_penalty * away_B.mean()
    return total


def _lecam(contest: Contest, lecam: LeCam, real_B: Tensor, fake_B: Tensor) -> tuple[Tensor, Tensor]:
    """relu(real - mean of fakes)² + relu(mean of reals - fake)², as in the source's code; and this part's two means.

    The running means are those of the steps before, moved on by this part's own; they are kept when all parts are done.
    """
    now = torch.stack([real_B.detach().mean(), fake_B.detach().mean()])
    means = _moved(contest.anchors.real_fake, now, lecam)
    return lecam.weight * (relu(real_B - means[1]).square().mean() + relu(means[0] - fake_B).square().mean()), now


def _moved(before: Tensor | None, now: Tensor, lecam: LeCam) -> Tensor:
    return now if before is None else before.lerp(now, 1 - lecam.decay)


def _flipped(rules: Rules, part: Deal) -> Tensor | None:
    if not rules.flip_real:
        return None
    return onto(part.labels_B.device, torch.rand(len(part.labels_B)) < rules.flip_real)


def _backward(loss: Tensor, scaler: GradScaler | None) -> None:
    torch.autograd.backward(loss if scaler is None else scaler.scale(loss))


def _take_step(network: nn.Module, adam: torch.optim.Adam, scaler: GradScaler | None, rules: Rules) -> None:
    """Clip, step; with fp16 undo the scale before and skip a step whose gradient overflowed."""
    if rules.clip_gradient is not None:
        if scaler is not None:
            scaler.unscale_(adam)
        torch.nn.utils.clip_grad_norm_(network.parameters(), rules.clip_gradient)
    if scaler is None:
        adam.step()
    else:
        scaler.step(adam)
        scaler.update()


def _gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
