"""What this machine can train with, as one line of JSON. The agent's doctor runs it as a child process.

A child, because torch is large, may be missing, and may end its process when a driver is broken.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch


def found() -> dict[str, Any]:
    """Versions, CPU capability (`DEFAULT` is one without vector instructions), threads, GPUs by name."""
    return {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(found()))
