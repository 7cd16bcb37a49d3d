"""`torch.compile` as an option: it leaves no trace, and where it fails the network runs as written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from histofed.training.compiling import compile_in_place, compile_players
from histofed.training.contest import Contest
from histofed.training.deal import Deal, deal
from histofed.training.objectives import OBJECTIVES
from histofed.training.rules import Augmentation, Rules
from histofed.training.step import play

MakeContest = Callable[..., Contest]
BATCH = 4


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(4 * 36, 1))


def _state(network: nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in network.state_dict().values()]


@pytest.mark.parametrize("fault", [False, True])
def test_a_trial_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, fault: bool) -> None:
    network = _network()

    def compiled(*_: object, **__: object) -> object:
        if fault:
            raise RuntimeError("no C++ compiler was found")
        return nn.Sequential.__call__

    if fault:
        monkeypatch.setattr(nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", compiled))
    else:
        monkeypatch.setattr(nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", self._call_impl))
    before, random = _state(network), torch.get_rng_state()

    def example() -> Tensor:
        number: Tensor = network(torch.randn(2, 3, 8, 8)).mean()
        return number

    reason = compile_in_place(network, example)
    assert reason == (
        "torch.compile does not work here (RuntimeError), so the network runs as it is written" if fault else ""
    )
    assert _state(network) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 1)


def test_memory_that_does_not_suffice_is_no_fault_of_the_compiler() -> None:
    def example() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        compile_in_place(_network(), example)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_numbers() -> None:
    """With whatever compiler this machine has, or none."""
    network, reference = _network().eval(), _network().eval()
    reason = compile_in_place(network, lambda: network(torch.randn(2, 3, 8, 8)).mean())
    print(reason or "compiled")
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(network(images), reference(images), rtol=1e-4, atol=1e-5)


def _rules(name: str, **changes: object) -> Rules:
    row = OBJECTIVES[name]
    return replace(Rules(row, heads=row.heads), **changes)  # type: ignore[arg-type]  # fields by name


def _part(count: int) -> Deal:
    labels = torch.arange(count) % 2
    return Deal(torch.zeros(count, 3, 32, 32), labels, torch.zeros(count, 8), labels)


def _dealt(rules: Rules) -> Deal:
    return deal(torch.rand(BATCH, 3, 32, 32) * 2 - 1, torch.arange(BATCH) % 2, 8, 2, rules)


def _way(network: nn.Module, *inputs: Tensor) -> object:
    """All that compiled code is made for."""
    precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return (
        type(network).__name__,
        precision,
        torch.is_grad_enabled(),
        tuple((one.shape, one.stride(), one.dtype, one.requires_grad) for one in inputs),
        tuple(parameter.requires_grad for parameter in network.parameters()),
        tuple(module.training for module in network.modules()),
    )


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        (_rules("acgan", precision="bf16"), {}),
        (_rules("acgan", precision="bf16", accumulate=2), {"norm": "group", "spectral_norm": True}),
        (_rules("acgan", augmentation=Augmentation()), {"discriminator": "vit-mini", "generator": "deep"}),
        (_rules("relativistic", penalty_every=2), {"discriminator": "vit-mini"}),
        (_rules("hinge", objective=replace(OBJECTIVES["hinge"], critic_steps=2), precision="bf16"), {}),
    ],
)
def test_what_is_tried_is_what_a_step_does(
    make_contest: MakeContest, monkeypatch: pytest.MonkeyPatch, rules: Rules, options: dict[str, Any]
) -> None:
    ways: set[object] = set()

    def compiled(network: nn.Module) -> None:
        def call(*inputs: Tensor) -> object:
            ways.add(_way(network, *inputs))
            return network._call_impl(*inputs)

        network._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compiled)
    contest = make_contest(rules=rules, **options)
    for network in (contest.generator, contest.discriminator):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    before, random = contest.state(), torch.get_rng_state()
    assert compile_players(contest, rules, _part(BATCH // rules.accumulate)) == ()
    after = contest.state()
    assert {name: array.tobytes() for name, array in after.items()} == {
        name: array.tobytes() for name, array in before.items()
    }
    assert torch.equal(torch.get_rng_state(), random)
    tried = set(ways)
    for step in range(4):
        play(contest, rules, _dealt(rules), step)
    assert ways == tried


def test_a_compiler_without_this_precision_is_found_out_before_the_first_step(
    make_contest: MakeContest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Triton on a card before sm_80."""

    def compiled(network: nn.Module) -> None:
        def call(*inputs: Tensor) -> object:
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("Feature '.bf16' requires .target sm_80 or higher")
            return network._call_impl(*inputs)

        network._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compiled)
    rules = _rules("acgan", precision="bf16")
    contest = make_contest(rules=rules)
    notes = compile_players(contest, rules, _part(BATCH))
    assert [note.partition(":")[0] for note in notes] == ["generator", "discriminator"]
    assert play(contest, rules, _dealt(rules), 0)["generator_loss"].isfinite()
