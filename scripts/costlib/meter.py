"""A meter for torch code that is run on tensors with shapes and no contents: FLOPs, and the bytes that are alive at once.

torch's own `FlopCounterMode` cannot follow a gradient that is differentiated again (R1, WGAN-GP); its formulas are used.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_FUSED: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
"""Attention as CPUs fuse it; torch has formulas for CUDA's kernels alone."""


class Meter(TorchDispatchMode):
    """FLOPs of what runs inside, and bytes of the tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
        self.flops = 0
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.flops += _flops(func.overloadpacket, args, kwargs or {}, out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._known:
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _flops(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    if operation is _FUSED:
        return int(sdpa_flop_count(*(one.shape for one in args[:3])))
    if operation is _FUSED_BACKWARD:
        return int(sdpa_backward_flop_count(*(one.shape for one in args[:4])))
    formula = flop_registry.get(operation)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


@contextmanager
def metered() -> Iterator[Meter]:
    """Tensors made inside have no contents, and what is done with them is counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), Meter() as meter:
        yield meter
