"""A GPU's way of resizing and bordering gives what torch's own gives; shown on a CPU, where both can run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.functional import interpolate, pad

from histofed.models import resampling
from histofed.models.resampling import BorderedConv2d, bordered, joined, multiplied, resized

SIZES = [(1, 2), (4, 8), (5, 10), (64, 224), (96, 64), (7, 7), (3, 1)]


def images(edge: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, edge, edge, dtype=dtype, generator=torch.Generator().manual_seed(edge))


def torchs(x: Tensor, edge: int) -> Tensor:
    return interpolate(x, (edge, edge), mode="bilinear", align_corners=False)


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_products_resize_as_torch_does(old: int, new: int) -> None:
    x = images(old)
    # torch reckons places in float32, so to its rounding
    torch.testing.assert_close(multiplied(x, new), torchs(x, new), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_gradient_of_products_is_the_one_of_torch(old: int, new: int) -> None:
    ours, theirs = images(old).requires_grad_(), images(old).requires_grad_()
    (multiplied(ours, new) ** 3).sum().backward()
    (torchs(theirs, new) ** 3).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-2)


def test_products_have_second_gradients() -> None:
    """A gradient penalty goes through the resizing before a ViT."""
    x = images(3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: multiplied(x, 5) ** 2, x)
    assert torch.autograd.gradgradcheck(lambda x: joined(x) ** 2, x)


@pytest.mark.parametrize("edge", [1, 2, 7])
def test_slices_border_as_torch_does_to_the_bit(edge: int) -> None:
    ours, theirs = images(edge).requires_grad_(), images(edge).requires_grad_()
    left, right = joined(ours), pad(theirs, (1, 1, 1, 1), mode="replicate")
    assert torch.equal(left, right)
    (left**2).sum().backward()
    (right**2).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_both_keep_channels_last() -> None:
    x = images(8).to(memory_format=torch.channels_last)
    assert is_channels_last(joined(x))
    assert is_channels_last(multiplied(x, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_the_type_of_neither(dtype: torch.dtype) -> None:
    x = images(8, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = multiplied(x, 16)
    assert found.dtype == joined(x).dtype == dtype
    rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), torchs(x.double(), 16), rtol=rounding, atol=4 * rounding)


def test_a_cpu_takes_torchs_own() -> None:
    """Its results are those of earlier releases to the bit."""
    x = images(9, dtype=torch.float32)
    assert torch.equal(resized(x, 32), torchs(x, 32))
    assert torch.equal(bordered(x), pad(x, (1, 1, 1, 1), mode="replicate"))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpu_asked_for_deterministic_kernels_takes_products_and_slices(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    taken = list[str]()
    for name in ("interpolate", "pad"):
        monkeypatch.setattr(resampling, name, lambda *_, name=name, **__: taken.append(name))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    with FakeTensorMode():  # shapes alone, of a GPU that need not be here
        x = torch.empty(2, 3, 8, 8, device="cuda")
        found = resized(x, 16), bordered(x)
    if deterministic:
        assert [tuple(each.shape) for each in found] == [(2, 3, 16, 16), (2, 3, 10, 10)]
    assert taken == ([] if deterministic else ["interpolate", "pad"])


def test_the_convolution_is_torchs_own_by_name_and_to_the_bit() -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 5, 3, padding=1, padding_mode="replicate")
    torch.manual_seed(0)
    ours = BorderedConv2d(3, 5)
    x = images(6, dtype=torch.float32)
    assert torch.equal(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())
