"""The start of a trunk from a local file: safetensors or a torch state dict, in timm's or torchvision's names.

A file counts only with the SHA-256 that the experiment pins. State dicts (`.pth`, as published by torchvision) are read with
torch's unpickler that knows tensors and containers alone: a file that would run code is refused. Nothing is ever downloaded.
torchvision's ResNets use timm's names; its ViT and Swin are renamed by the tables below (the tensors themselves are equal:
`tests/unit/models/test_trunk_weights.py` compares the outputs of both libraries).
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import torch
from torch import Tensor, nn

from histofed import weights as tensor_files
from histofed.base.errors import BadData


@dataclass(frozen=True)
class LocalWeights:
    """A trunk's start: a file on this machine and the SHA-256 it must have."""

    path: Path
    sha256: str


_ZIP, _PICKLE = b"PK", b"\x80"
"""First bytes of what `torch.save` writes, now and before torch 1.6; safetensors begins with a small number."""

_CLASSIFIER: Final = ("head.", "heads.", "head_dist.", "fc.", "classifier.", "pre_logits.", "last_linear.")
"""Where published files keep what only their own classes need."""

_VIT: Final = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
)
_SWIN: Final[tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]] = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    # the odd entries of `features` are stages, the even ones the mergers before a stage
    (r"^features\.([1357])\.(\d+)\.", lambda found: f"layers.{int(found[1]) // 2}.blocks.{found[2]}."),
    (r"^features\.([246])\.", lambda found: f"layers.{int(found[1]) // 2}.downsample."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)


def load_trunk(trunk: nn.Module, weights: LocalWeights) -> bool:
    """Fill the trunk from a local file; a classifier in it is left out, anything else must fit. Raises `BadData`.

    Tells whether the file is in torchvision's names, so its network was trained on images normalised as torchvision does.
    """
    _check(weights)
    read = _read(weights.path)
    found = to_timm_names(read)
    own = trunk.state_dict()
    wanted = {name for name, tensor in own.items() if tensor.is_floating_point()}
    missing = sorted(wanted - found.keys())
    wrong = [name for name in sorted(wanted & found.keys()) if own[name].shape != found[name].shape]
    too_much = sorted(name for name in found.keys() - own.keys() if not name.startswith(_CLASSIFIER))
    for names, how in ((missing, "missing"), (wrong, "of another shape"), (too_much, "unknown to it")):
        if names:
            raise BadData(
                f"discriminator weights do not fit the model: tensor {names[0]!r} is {how}; "
                "use the file that belongs to this model, from timm or torchvision"
            )
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(found[name])
    return found.keys() != read.keys()


def to_timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names of a ViT or Swin turned into timm's; any other names stay as they are."""
    if "class_token" in tensors and "conv_proj.weight" in tensors:
        table: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = _VIT
    elif "features.0.0.weight" in tensors and any(name.endswith("relative_position_bias_table") for name in tensors):
        table = _SWIN
    else:
        return dict(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in table:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    return renamed


def _check(weights: LocalWeights) -> None:
    """The file is here and is the one that is pinned. Raises `BadData`."""
    # one sentence for all: an experiment must not be able to ask which files a site has, nor which the agent may read
    try:
        found = weights.path.is_file() and _sha256(weights.path) == weights.sha256
    except OSError:
        found = False
    if not found:
        raise BadData(
            f"discriminator weights {str(weights.path)!r}: there is no such file with SHA-256 {weights.sha256}; "
            "copy it to this machine, where the agent may read it, or correct the experiment"
        )


def _read(path: Path) -> dict[str, Tensor]:
    """The floating tensors of a file of either kind. Raises `BadData`."""
    with path.open("rb") as file:
        begin = file.read(2)
    if not begin.startswith((_ZIP, _PICKLE)):
        try:
            arrays = tensor_files.read(path)
        except BadData as error:
            raise BadData(f"discriminator weights {str(path)!r}: {error}") from error
        return {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind == "f"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an unusual pickle; whether it can be read is seen below
            document = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise BadData(
            "discriminator weights are not a plain state dict: the file is damaged, or holds code beside its tensors; "
            "use the published file, or save `model.state_dict()`"
        ) from error
    # training scripts wrap the state dict once
    for wrapper in ("state_dict", "model"):
        if isinstance(document, dict) and isinstance(document.get(wrapper), dict):
            document = document[wrapper]
    if not isinstance(document, dict) or not all(isinstance(value, Tensor) for value in document.values()):
        raise BadData("discriminator weights are not a state dict (tensors by name); save `model.state_dict()`")
    return {str(name): tensor for name, tensor in document.items() if tensor.is_floating_point()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
