"""Too little memory is told as what to lower."""

from __future__ import annotations

import pytest
import torch

from histofed.base.errors import OutOfMemory, TrainingFailed
from histofed.training.shortage import memory_explained


def _told(error: Exception, batch: int, accumulate: int, precision: str) -> str:
    with pytest.raises(OutOfMemory) as caught, memory_explained(batch, accumulate, precision, 128):
        raise error
    return str(caught.value)


def test_the_gpus_memory() -> None:
    sentence = _told(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 32, 2, "fp32")
    assert "the memory of the GPU does not suffice" in sentence
    for advice in ("accumulate = 4 (the batch of 32 in 4 parts)", 'precision = "bf16"', "image_size below 128"):
        assert advice in sentence


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=["context", "cublas", "cudnn"],
)
def test_the_gpus_memory_beside_torchs_allocator(error: Exception) -> None:
    assert "the memory of the GPU does not suffice" in _told(error, 32, 2, "fp32")


def test_advice_that_was_taken_is_not_given_again() -> None:
    sentence = _told(torch.OutOfMemoryError(""), 4, 2, "bf16")
    assert "accumulate" not in sentence
    assert "bf16" not in sentence


def test_the_machines_memory() -> None:
    with pytest.raises(OutOfMemory, match="the memory of this machine"), memory_explained(8, 1, "fp32", 64):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_the_machines_memory_where_a_file_is_mapped() -> None:
    error = RuntimeError("unable to mmap 8589934592 bytes from file </dev/shm/x>: Cannot allocate memory (12)")
    assert "the memory of this machine does not suffice" in _told(error, 32, 2, "fp32")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
        RuntimeError("the layout of memory differs"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        TrainingFailed("process 2 of 2 of this training was killed by signal 9 (out of memory?)"),
    ],
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_explained(8, 1, "fp32", 64):
        raise error
    assert caught.value is error
