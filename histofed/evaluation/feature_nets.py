"""Networks that turn a tile into a feature vector: fixed architectures with weights from a local, hash-pinned file.

| name             | features | source of the architecture       | reads                                  |
|------------------|----------|----------------------------------|----------------------------------------|
| `mobilenet-v1`   | 768      | Howard et al., arXiv 1704.04861  | RGB / 127.5 - 1, TensorFlow's padding  |
| `squeezenet-1.1` | 512      | Iandola et al., arXiv 1602.07360 | BGR minus Caffe's channel means        |

Neither is FID's Inception: a distance on these features carries the net's name. Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from histofed.base.errors import BadData

EDGE: Final = 128
"""Tiles are brought to this edge, pixels: small ones are enlarged, and all nets see the same."""
_CAFFE_MEANS: Final = (103.939, 116.779, 123.68)
"""Blue, green, red."""


class FeatureNet:
    """One network, ready: `features` of uint8 tiles. Immutable; on the CPU."""

    def __init__(self, name: str, network: nn.Module, sha256: str) -> None:
        self.name = name
        self.sha256 = sha256
        """Of the file: a number without it does not say which features it is about."""
        self._network = network.requires_grad_(False).eval()

    def features(self, pixels_BCHW: npt.NDArray[np.uint8], batch: int = 64) -> npt.NDArray[np.float32]:
        """uint8 tiles (N, 3, S, S) → vectors (N, F)."""
        with torch.inference_mode():
            parts = [
                self._network(_enlarged(torch.from_numpy(np.ascontiguousarray(pixels_BCHW[at : at + batch]))))
                for at in range(0, len(pixels_BCHW), batch)
            ]
        found: npt.NDArray[np.float32] = torch.cat(parts).numpy()
        return found


def load_feature_net(name: str, path: Path, sha256: str) -> FeatureNet:
    """The net `name` with the state dict in `path`. Raises `BadData` for another name, file, hash or layout."""
    if name not in _BUILDERS:
        raise BadData(f"feature net {name!r} is not known; use one of {', '.join(_BUILDERS)}")
    if not path.is_file() or _sha256(path) != sha256:
        raise BadData(f"feature net {name}: there is no file {str(path)!r} with SHA-256 {sha256}; copy it to this machine")
    network = _BUILDERS[name]()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        # a classifier that the file holds beside the features is left out
        network.load_state_dict({key: found[key] for key in network.state_dict()})
    except KeyError as error:
        raise BadData(f"feature net {name}: the file lacks tensor {error}; use the weights of this network") from error
    except (UnpicklingError, RuntimeError, EOFError, ValueError, TypeError) as error:
        raise BadData(f"feature net {name}: the file does not hold the weights of this network") from error
    return FeatureNet(name, network, sha256)


def _enlarged(pixels_BCHW: Tensor) -> Tensor:
    """Float 0..255 at the nets' edge."""
    images = pixels_BCHW.to(torch.float32)
    if images.shape[-1] == EDGE:
        return images
    return functional.interpolate(images, (EDGE, EDGE), mode="bilinear", align_corners=False, antialias=True)


class _MobileNetV1(nn.Module):
    """Width 0.75; every stage halves with TensorFlow's padding, which is one pixel off torch's."""

    def __init__(self) -> None:
        super().__init__()
        width = 24
        layers: list[nn.Module] = [_SameConv(3, width, 3, stride=2, bias=False), *_normed(width)]
        plan = [(48, 1), (96, 2), (96, 1), (192, 2), (192, 1), (384, 2), *[(384, 1)] * 5, (768, 2), (768, 1)]
        for out, stride in plan:
            layers += [_SameConv(width, width, 3, stride=stride, groups=width, bias=False), *_normed(width)]
            layers += [nn.Conv2d(width, out, 1, bias=False), *_normed(out)]
            width = out
        self.features = nn.Sequential(*layers)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        found: Tensor = self.features(images_BCHW / 127.5 - 1).mean((2, 3))
        return found


class _SameConv(nn.Conv2d):
    """As much padding as makes the output ceil(n / stride), the odd pixel behind."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        short = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (x_BCHW.shape[-1], x_BCHW.shape[-2])]
        padded = functional.pad(x_BCHW, [part for n in short for part in (n // 2, n - n // 2)])
        out: Tensor = self._conv_forward(padded, self.weight, self.bias)
        return out


def _normed(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU6()


class _Fire(nn.Module):
    def __init__(self, channels_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.squeeze(x_BCHW).relu()
        return torch.cat([self.expand1x1(x_BCHW).relu(), self.expand3x3(x_BCHW).relu()], 1)


class _SqueezeNet(nn.Sequential):
    def __init__(self) -> None:
        fires = [_Fire(64, 16, 64), _Fire(128, 16, 64), _Fire(128, 32, 128), _Fire(256, 32, 128)]
        fires += [_Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256)]
        super().__init__(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            *(nn.MaxPool2d(3, 2), *fires[:2]),
            *(nn.MaxPool2d(3, 2), *fires[2:4]),
            *(nn.MaxPool2d(3, 2), *fires[4:]),
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x_BCHW = images_BCHW.flip(1) - torch.tensor(_CAFFE_MEANS).view(1, 3, 1, 1)
        for layer in self:
            x_BCHW = layer(x_BCHW)
        return x_BCHW.mean((2, 3))


_BUILDERS: Final[Mapping[str, Callable[[], nn.Module]]] = {"mobilenet-v1": _MobileNetV1, "squeezenet-1.1": _SqueezeNet}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
