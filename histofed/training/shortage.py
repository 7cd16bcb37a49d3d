"""Too little memory, told as what to lower. Called around everything that a trainer computes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from histofed.base.errors import OutOfMemory

_OF_THE_GPU: Final = re.compile(r"\bout of memory\b|_alloc(ation)?_failed\b")
_OF_THE_MACHINE: Final = re.compile(r"\bcan('t|not) allocate memory\b")
"""In lower case. The CPU's allocator has no class of its own, nor has what takes a GPU's memory beside torch's allocator."""


@contextmanager
def memory_explained(batch: int, accumulate: int, precision: str, image_size: int) -> Iterator[None]:
    """Turn torch's and numpy's errors about memory into `OutOfMemory`, with advice that fits these settings; others pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (place := _lacking(error)) is None:
            raise
        raise OutOfMemory(_sentence(place, batch, accumulate, precision, image_size)) from error


def _lacking(error: RuntimeError | MemoryError) -> str | None:
    """Whose memory does not suffice; None where the error is another."""
    words = str(error).lower()
    if isinstance(error, MemoryError) or _OF_THE_MACHINE.search(words):
        return "this machine"
    return "the GPU" if isinstance(error, torch.OutOfMemoryError) or _OF_THE_GPU.search(words) else None


def _sentence(place: str, batch: int, accumulate: int, precision: str, image_size: int) -> str:
    ways = []
    if batch // accumulate >= 4:
        ways.append(f"accumulate = {2 * accumulate} (the batch of {batch} in {2 * accumulate} parts) or a smaller batch")
    if precision == "fp32":
        ways.append('precision = "bf16"')
    ways += [f"image_size below {image_size}", "a smaller discriminator, or its trunk frozen"]
    return (
        f"the memory of {place} does not suffice; lower in the experiment: {'; '.join(ways)}; or free it from other programs"
    )
