"""The heads of a discriminator over one feature vector: validity and class, in the three ways that objectives know.

| name         | validity (B,)  | classes (B, K)                     | source                                      |
|--------------|----------------|------------------------------------|---------------------------------------------|
| `class`      | w·f            | logits of a classifier             | ACGAN, Odena et al., arXiv 1610.09585       |
| `projection` | w·f            | e_k·f, added to the validity       | Miyato and Koyama, arXiv 1802.05637         |
| `reacgan`    | w·f            | cosines of a unit vector to proxies | ReACGAN, Kang et al., arXiv 2111.01118, §3 |

How the parts enter a loss is said in `training/conditioning.py`.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from histofed.base.errors import BadData
from histofed.models.networks import Judgement

EMBEDDING: Final = 256
"""Length of ReACGAN's unit vectors: enough for 50 classes, and small beside every trunk."""


class ClassHeads(nn.Module):
    """Two linear heads: validity (1) and class (K)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.validity = nn.Linear(features, 1)
        self.classes = nn.Linear(features, classes)

    def forward(self, features_BF: Tensor) -> Judgement:
        """Features → validity logits, class logits, the features."""
        return Judgement(self.validity(features_BF).squeeze(1), self.classes(features_BF), features_BF)


class ProjectionHeads(nn.Module):
    """D(x, y) = w·f(x) + e_y·f(x); `classes.weight` holds the e_k as rows. A pretrained trunk sees no label channel."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.validity = nn.Linear(features, 1)
        self.classes = nn.Linear(features, classes, bias=False)

    def forward(self, features_BF: Tensor) -> Judgement:
        """Features → w·f, every e_k·f, the features."""
        return Judgement(self.validity(features_BF).squeeze(1), self.classes(features_BF), features_BF)


class UnitHeads(nn.Module):
    """Validity from the features; classes from where their unit-norm image lies among K unit-norm proxies."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.validity = nn.Linear(features, 1)
        self.embed = nn.Linear(features, EMBEDDING)
        self.proxies = nn.Parameter(torch.randn(classes, EMBEDDING))

    def forward(self, features_BF: Tensor) -> Judgement:
        """Features → validity logits, cosines to the proxies in [-1, 1], unit vectors."""
        embedding_BE = normalize(self.embed(features_BF), dim=1)
        cosines_BK = linear(embedding_BE, normalize(self.proxies, dim=1))
        return Judgement(self.validity(features_BF).squeeze(1), cosines_BK, embedding_BE)


_KINDS: Final = {"class": ClassHeads, "projection": ProjectionHeads, "reacgan": UnitHeads}


def build_heads(kind: str, features: int, classes: int) -> nn.Module:
    """Heads by name, with fresh weights. Raises `BadData`."""
    if kind not in _KINDS:
        raise BadData(f"heads {kind!r} are not known; use one of {', '.join(_KINDS)}")
    return _KINDS[kind](features, classes)
