"""Too little memory, told as what to lower. Called around everything that a trainer computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from histofed.base.errors import OutOfMemory


@contextmanager
def memory_explained(batch: int, accumulate: int, precision: str, image_size: int) -> Iterator[None]:
    """Turn torch's and numpy's errors about memory into `OutOfMemory`, with advice that fits these settings; others pass."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(_sentence("the GPU", batch, accumulate, precision, image_size)) from error
    except MemoryError as error:
        raise OutOfMemory(_sentence("this machine", batch, accumulate, precision, image_size)) from error
    except RuntimeError as error:
        # the allocator of the CPU has no class of its own
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(_sentence("this machine", batch, accumulate, precision, image_size)) from error


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
