"""`torch.compile` as an option: it leaves no trace, and where it fails the network runs as written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from histofed.training.compiling import compile_in_place


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
