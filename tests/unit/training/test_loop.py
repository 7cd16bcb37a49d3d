"""The loop: learns, repeats bit for bit, stops and goes on, refuses to end in NaN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.amp import GradScaler

from histofed.base.clock import FakeClock
from histofed.base.errors import BadData, Cancelled, TrainingFailed
from histofed.training.batches import Batches
from histofed.training.checkpoint import CheckpointStore
from histofed.training.contest import LEAST_SCALE, Contest
from histofed.training.loop import CHECKPOINT_SECONDS, Step, train
from histofed.training.rules import Returns, Rules

MakeContest = Callable[..., Contest]


class _Stop:
    """Turns true at its n-th question."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def _train(
    contest: Contest, batches: Batches, folder: Path, steps: int = 6, stop: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    steps_seen: list[Step] = []
    losses = train(contest, batches, steps, 2, CheckpointStore(folder, "work"), FakeClock(), steps_seen.append, stop)
    assert steps_seen[-1].number == steps
    return dict(losses)


def _bytes(contest: Contest) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in contest.state().items()}


def test_a_run_repeats_bit_for_bit(make_contest: MakeContest, batches: Batches, tmp_path: Path) -> None:
    one = make_contest()
    losses = _train(one, batches, tmp_path)
    other = make_contest()
    assert _train(other, batches, tmp_path) == losses
    assert _bytes(one) == _bytes(other)
    of_another_seed = make_contest(seed=2)
    _train(of_another_seed, batches, tmp_path)
    assert _bytes(one) != _bytes(of_another_seed)


@pytest.mark.parametrize("discriminator", ["cnn", "vit-mini"])
def test_a_run_stopped_twice_ends_in_the_same_bytes(
    make_contest: MakeContest, batches: Batches, tmp_path: Path, discriminator: str
) -> None:
    whole = make_contest(discriminator=discriminator)
    losses = _train(whole, batches, tmp_path / "none")
    folder = tmp_path / "task"
    folder.mkdir()
    for after in (2, 3):
        with pytest.raises(Cancelled, match=r"of 6 steps; it goes on from there"):
            _train(make_contest(discriminator=discriminator), batches, folder, stop=_Stop(after))
        torch.randn(7)  # the process did other things in between
    resumed = make_contest(discriminator=discriminator)
    assert _train(resumed, batches, folder) == losses
    assert _bytes(resumed) == _bytes(whole)


def test_a_stop_before_the_first_step_loses_nothing(make_contest: MakeContest, batches: Batches, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        _train(make_contest(), batches, tmp_path, stop=_Stop(0))
    resumed = make_contest()
    _train(resumed, batches, tmp_path)
    whole = make_contest()
    _train(whole, batches, tmp_path / "none")
    assert _bytes(resumed) == _bytes(whole)


def test_a_killed_run_goes_on_from_its_last_regular_checkpoint(
    make_contest: MakeContest, batches: Batches, tmp_path: Path
) -> None:
    clock, store = FakeClock(), CheckpointStore(tmp_path, "work")
    asked = 0

    def killed_at_the_fifth_step() -> bool:
        nonlocal asked
        asked += 1
        clock.advance(CHECKPOINT_SECONDS / 2.5)
        if asked == 5:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(make_contest(), batches, 6, 2, store, clock, lambda _: None, killed_at_the_fifth_step)
    assert (checkpoint := store.load()) is not None
    assert checkpoint.step == 2
    resumed = make_contest()
    _train(resumed, batches, tmp_path)
    whole = make_contest()
    _train(whole, batches, tmp_path / "none")
    assert _bytes(resumed) == _bytes(whole)


def test_the_discriminator_learns_what_is_easy_to_tell(make_contest: MakeContest, batches: Batches, tmp_path: Path) -> None:
    contest = make_contest(rate=2e-3)
    steps: list[Step] = []
    clock = FakeClock()

    def tick() -> bool:
        clock.advance(1)
        return False

    train(contest, batches, 40, 2, CheckpointStore(tmp_path, "work"), clock, steps.append, tick)
    first, last = steps[0].losses["discriminator_loss"], steps[-1].losses["discriminator_loss"]
    assert last < 0.6 * first
    assert len(steps) == 40
    assert steps[-1].images_per_second == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("what", ["generator", "discriminator"])
def test_a_loss_that_is_not_finite_ends_the_task(
    make_contest: MakeContest, batches: Batches, tmp_path: Path, what: str
) -> None:
    contest = make_contest()
    broken = contest.generator if what == "generator" else contest.discriminator
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingFailed, match=r"loss is nan at step 1 of 6; lower the learning rates"):
        _train(contest, batches, tmp_path)


def test_weights_of_another_network_are_refused(make_contest: MakeContest) -> None:
    contest = make_contest()
    state = contest.state()
    state["generator.to_rgb.bias"] = state["generator.to_rgb.bias"][:2]
    with pytest.raises(BadData, match=r"not those of this generator: to_rgb\.bias has shape"):
        contest.load(state)


class _Poison:
    """Batches of which some break the discriminator, a given number of times."""

    def __init__(self, batches: Batches, contest: Contest, at: int, times: int) -> None:
        self._batches, self._contest, self._at, self._left = batches, contest, at, times

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == self._at and self._left:
            self._left -= 1
            with torch.no_grad():
                next(self._contest.discriminator.parameters()).fill_(float("nan"))
        return self._batches.at(step)


RETURNS = Rules(returns=Returns(most=2, every=2))


def _poisoned(
    contest: Contest, batches: Batches, folder: Path, times: int, stop: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    poison = _Poison(batches, contest, 3, times)
    store = CheckpointStore(folder, "work")
    losses = train(contest, poison, 6, 2, store, FakeClock(), lambda _: None, stop, RETURNS)  # type: ignore[arg-type]  # only `at` is asked
    store.clear()
    return dict(losses)


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_diverges_returns_with_half_the_rates(
    make_contest: MakeContest, batches: Batches, tmp_path: Path, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    contest = make_contest()
    losses = _poisoned(contest, batches, tmp_path, times)
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    assert contest.generator_adam.param_groups[0]["lr"] == pytest.approx(2e-4 / 2**times)
    assert f"adam.{'generator.to_rgb.bias'}.step" in contest.state()
    assert contest.state()["adam.generator.to_rgb.bias.step"] == 6
    assert caplog.text.count("returns to step 2") == times
    assert not [*tmp_path.glob("good*")], "the work is done"


def test_a_run_that_diverges_again_and_again_fails(make_contest: MakeContest, batches: Batches, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"is nan at step 4 of 6; .*\(after 2 returns to an earlier state"):
        _poisoned(make_contest(), batches, tmp_path, 3)


def test_a_run_stopped_after_a_return_ends_in_the_same_bytes(
    make_contest: MakeContest, batches: Batches, tmp_path: Path
) -> None:
    whole = make_contest()
    losses = _poisoned(whole, batches, tmp_path, 1)
    with pytest.raises(Cancelled, match="after 3 of 6"):
        _poisoned(make_contest(), batches, tmp_path, 1, stop=_Stop(5))  # 0 1 2 3 → 2 3
    resumed = make_contest()
    assert _poisoned(resumed, batches, tmp_path, 0) == losses
    assert _bytes(resumed) == _bytes(whole)


def test_a_loss_beyond_its_limit_counts_as_diverged(make_contest: MakeContest, batches: Batches, tmp_path: Path) -> None:
    rules = Rules(returns=Returns(most=1, every=2, limit=1e-9))
    store = CheckpointStore(tmp_path, "work")
    with pytest.raises(TrainingFailed, match=r"generator loss is [0-9.]+ at step 1 .*after 1 returns"):
        train(make_contest(), batches, 6, 2, store, FakeClock(), lambda _: None, lambda: False, rules)


def test_a_state_that_is_broken_from_the_start_is_no_state_to_return_to(
    make_contest: MakeContest, batches: Batches, tmp_path: Path
) -> None:
    contest = make_contest()
    with torch.no_grad():
        next(contest.generator.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingFailed, match=r"loss is nan at step 1 of 6"):
        train(contest, batches, 6, 2, CheckpointStore(tmp_path, "work"), FakeClock(), lambda _: None, lambda: False, RETURNS)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_when_losses_are_read_does_not_matter(
    make_contest: MakeContest, batches: Batches, tmp_path: Path, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU: read late, a divergence is told of the step it came from, and the run returns to the same state."""
    ends = []
    for read_every in (1, 4):
        contest = make_contest()
        poison = _Poison(batches, contest, 4, times)
        store = CheckpointStore(tmp_path / str(read_every), "work")
        (tmp_path / str(read_every)).mkdir()
        losses = train(
            contest,
            poison,  # type: ignore[arg-type]  # only `at` is asked
            7,
            2,
            store,
            FakeClock(),
            lambda _: None,
            lambda: False,
            Rules(returns=Returns(most=2, every=3)),
            read_every=read_every,
        )
        ends.append((losses, _bytes(contest)))
    assert ends[0] == ends[1]
    assert caplog.text.count("at step 5") == 2 * times


@pytest.mark.parametrize(("player", "read_every"), [("generator", 1), ("discriminator", 3)])
def test_gradients_that_overflow_at_every_scale_end_the_task(
    make_contest: MakeContest, batches: Batches, tmp_path: Path, player: str, read_every: int
) -> None:
    """Losses stay finite when every step of fp16 is skipped, and nothing is learned."""
    rules = Rules(precision="fp16")
    contest = make_contest(rules=rules)
    next(getattr(contest, player).parameters()).register_hook(lambda gradient: gradient * float("inf"))
    low = (GradScaler("cpu", 2 * LEAST_SCALE), GradScaler("cpu", 2 * LEAST_SCALE))
    store = CheckpointStore(tmp_path, "work")
    with pytest.raises(TrainingFailed, match=rf"the {player}'s gradients overflow .* at step 2 of 3; .*\"bf16\""):
        train(
            replace(contest, scalers=low),
            batches,
            3,
            2,
            store,
            FakeClock(),
            lambda _: None,
            lambda: False,
            rules,
            read_every=read_every,
        )
