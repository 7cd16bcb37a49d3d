"""Make torchvision importable beside a torch whose compiled operators it does not fit.

timm imports torchvision for its model tracing. On machines where a CUDA build of torchvision stands beside a CPU build of
torch (package mirrors often carry one without the other) its compiled library cannot load, and the Python half then fails
while it registers a shape function for an operator that nobody has declared. Declaring the two operators that it registers
lets the Python half load. Models and transforms work afterwards; `torchvision.ops.nms` and the JPEG decoder do not, and
histofed uses neither. Where torchvision imports by itself nothing happens.

Called by `timm_discriminator` before timm is imported.
"""

from __future__ import annotations

import functools
import importlib
import sys

import torch

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def ensure_torchvision() -> torch.library.Library | None:
    """Import torchvision, declaring its operators when its own library could not; None where that was not needed.

    The cache keeps the declarations alive: they end with the library object. Raises what torchvision raises when the
    reason is another one.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library: torch.library.Library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        library.define(operator + _SCHEMA)
    importlib.import_module("torchvision")
    return library
