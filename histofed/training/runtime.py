"""How torch runs in a trainer process: device, threads, deterministic algorithms, seed. Called before a network exists."""

from __future__ import annotations

import torch

from histofed.base.errors import ConfigError


def prepare(device: str, threads: int, seed: int) -> torch.device:
    """Set up this process for one task; returns the device to train on. Raises `ConfigError` for one that is not here.

    On a CPU with a fixed number of threads everything afterwards repeats bit for bit. On a GPU deterministic kernels are
    used where there are some.
    """
    chosen = _device(device)
    if threads > 0:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=chosen.type != "cpu")
    # its default fills every fresh buffer with NaN to expose reads of uninitialised memory: a debugging aid that costs time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # absent from torch's stubs
    torch.manual_seed(seed)
    return chosen


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} is not on this machine (GPUs found: {torch.cuda.device_count()}); use cpu or auto"
        )
    return device
