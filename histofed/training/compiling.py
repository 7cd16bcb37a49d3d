"""`torch.compile` where it works here, and a sentence where it does not. Called before training.

What is tried is what a step does, pass by pass: code that was compiled for another precision, or with another gradient
wanted, would be compiled anew in the first step, where nothing catches its error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from histofed.models.networks import Judgement
from histofed.models.norms import spectral_norm_held
from histofed.training.augment import augment
from histofed.training.contest import Contest
from histofed.training.deal import Deal
from histofed.training.passes import drawn_by, look, real_logits, seen, weights_held
from histofed.training.rules import Rules


def compile_players(contest: Contest, rules: Rules, part: Deal) -> tuple[str, ...]:
    """Compile both networks, each apart, for parts like `part`; what did not work, in words."""
    held = rules.accumulate > 1

    def drawn() -> Tensor:
        if rules.objective.critic_steps > 1:  # there are steps in which the generator does not move
            with torch.no_grad():
                drawn_by(contest, rules, part)
        return drawn_by(contest, rules, part).mean()

    def judged_for_the_generator() -> Tensor:
        fake_BCHW = _fakes(contest, rules, part).requires_grad_()
        with weights_held(contest.discriminator), spectral_norm_held(contest.discriminator, held):
            real_logits(contest, rules, part)
            return _number(look(contest, rules, fake_BCHW))

    def judged_for_itself() -> Tensor:
        fake_BCHW = _fakes(contest, rules, part)
        with spectral_norm_held(contest.discriminator, held):
            on_real = look(contest, rules, augment(part.real_BCHW, rules.augmentation))
            return _number(on_real) + _number(look(contest, rules, fake_BCHW))

    found = {
        "generator": compile_in_place(contest.generator, drawn),
        "discriminator": compile_in_place(contest.discriminator, judged_for_the_generator, judged_for_itself),
    }
    return tuple(f"{name}: {reason}" for name, reason in found.items() if reason)


def compile_in_place(network: nn.Module, *examples: Callable[[], Tensor]) -> str:
    """Compile the network's forward and try it, there and back; empty, or why it runs as written instead.

    Each of `examples` calls the network with inputs as they will come and gives a number to differentiate. The
    trial leaves no trace: weights, statistics, gradients and random numbers are as before. Compilers fail in many ways (no
    C++ compiler, an operator or a processor that they do not know), none of which is a reason not to train; so every error
    counts.
    """
    devices = {parameter.device for parameter in network.parameters() if parameter.device.type == "cuda"}
    reason = ""
    with _as_it_was(network):
        try:
            with torch.random.fork_rng(list(devices)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its own modules use what torch itself calls deprecated
                network.compile()
                for example in examples:
                    torch.autograd.backward(example())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # said to the caller, who reports it
            network._compiled_call_impl = None  # torch has no public way to undo `compile`
            reason = f"torch.compile does not work here ({type(error).__name__}), so the network runs as it is written"
    return reason


def _fakes(contest: Contest, rules: Rules, part: Deal) -> Tensor:
    """As the discriminator will see them, in memory as the generator leaves them; it keeps no trace of having drawn."""
    with _as_it_was(contest.generator):
        return seen(drawn_by(contest, rules, part), rules, part).seen_BCHW.detach()


def _number(answer: Judgement) -> Tensor:
    return torch.stack([numbers.float().mean() for numbers in answer]).sum()


@contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """Afterwards its weights and statistics are as before, and it has no gradient."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        yield
    finally:
        network.zero_grad()
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                tensor.copy_(before[name])
