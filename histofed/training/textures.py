"""How far the textures of fakes are from those of the site's reals, with the image as the unit: no judge to be learned.

A distance between all patches of a batch and all of the reals (Heitz et al., arXiv 2006.07229) is smallest when every fake
is the same average tissue: fakes that were taught so varied a quarter as much as real tiles, on two nets' features
(`docs/results/README.md`). Here each image is described by itself, and what is compared is how the descriptions vary from
image to image:

    1  filters: directions in which the reals' patches of 5 x 5 vary, few eigenvectors mixed in each, on a pyramid of sizes
    2  filters on local energy: the same on 3 x 3 places of |eigenvectors' responses|, so that edges and nuclei count
    3  a filter's responses all over the image, sorted, in bins: their means describe the image
    4  each number's values over the fakes of a class are compared with its values over the site's tiles of that class, and
       so are random mixtures of all numbers: a sliced Wasserstein distance (Rabin et al. 2011)

The statistics follow Portilla and Simoncelli (2000); that fixed filters do for textures, Ustyuzhaninov et al. (arXiv
1606.00021). The reals' side is the whole set, so it has no noise.

What is kept of the reals is rebuilt from the tiles at each start and lies in memory only: it is no part of a checkpoint, of
the weights or of an update. Pooled over the image, it cannot say which pixel was where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, normalize, smooth_l1_loss, unfold

from histofed.models.ranges import to_model_range
from histofed.training.moving import onto

MOST_TILES: Final = 2048
"""That describe the reals: 22 MB of numbers at 64 px, and as many sorted."""
FILTERS: Final = 48
"""Of each level and kind."""
BINS: Final = 8
MIXTURES: Final = 64
"""Of all numbers, drawn for each step."""
_EDGE: Final = 5
"""Of a patch, pixels of its level."""
_SMALLEST: Final = 8
_GRID: Final = 16
"""Places along an edge that a level is read at, about, from a random pixel on; twice as many for the energy."""
_ENERGIES: Final = 24
"""Eigenvectors whose energy is looked at."""
_SAMPLE: Final = 400
"""Tiles that the filters are made from."""
_FLOOR: Final = 2e-3
"""Added to the variances, as a share of their sum: sensor noise is not told apart from none."""
_DROPPED: Final = 1e-3
"""Eigenvectors with less of the largest variance are left out."""
_AT_ONCE: Final = 64
_SEED: Final = 5
_MOST_SPREAD: Final = 4.0
_FEWEST: Final = 4
"""Fakes of one class that are compared with their class; fewer are compared with all tiles."""


@dataclass(frozen=True)
class _Filters:
    """A convolution whose responses to the reals have mean 0 and variance 1, about."""

    weight_DCEE: Tensor
    bias_D: Tensor
    stride: int

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        return conv2d(images_BCHW, self.weight_DCEE, self.bias_D, stride=self.stride)

    def on(self, device: torch.device) -> _Filters:
        return _Filters(self.weight_DCEE.to(device), self.bias_D.to(device), self.stride)


@dataclass(frozen=True)
class _Level:
    """One size of the pyramid."""

    ratio: int
    plain: _Filters
    energies: _Filters | None
    second: _Filters | None

    def numbers(self, images_BCHW: Tensor, top: float, left: float) -> list[Tensor]:
        """What describes each image, (B, N) twice; read from a pixel on that `top` and `left` (of a stride) tell."""
        images_BCHW = _smaller(images_BCHW, self.ratio)
        found = [_binned(self.plain(_from(images_BCHW, self.plain.stride, top, left)))]
        if self.energies is not None and self.second is not None:
            energy_BCHW = self.energies(_from(images_BCHW, self.energies.stride, top, left)).abs()
            found.append(_binned(self.second(avg_pool2d(energy_BCHW, 2))))
        return found

    def on(self, device: torch.device) -> _Level:
        energies, second = (one.on(device) if one is not None else None for one in (self.energies, self.second))
        return _Level(self.ratio, self.plain.on(device), energies, second)


class _Values:
    """Each number's values over the reals; for every count of fakes, what theirs should be."""

    def __init__(self, numbers_NF: Tensor) -> None:
        self._sorted_FN = numbers_NF.T.sort(1).values
        self._mean_F1 = self._sorted_FN.mean(1, keepdim=True)
        self._variance_F1 = self._sorted_FN.var(1, correction=0, keepdim=True)

    def targets(self, count: int) -> Tensor:
        """The sorted numbers of `count` fakes, (F, count): what as many reals would have on average, and farther apart.

        By as much that, of fakes drawn independently, those that vary as the reals do are nearest in the mean of squares.
        With the averages themselves fakes would learn to be alike: they have no hand in which of them come together.
        """
        expected_FK = self._sorted_FN @ _order_weights(self._sorted_FN, count) - self._mean_F1
        spread_F1 = expected_FK.square().mean(1, keepdim=True).clamp_min(1e-6)
        return self._mean_F1 + expected_FK * (self._variance_F1 / spread_F1).clamp(1, _MOST_SPREAD)


def _order_weights(like_FN: Tensor, count: int) -> Tensor:
    """How much each of N sorted values weighs in the k-th of `count` that are drawn of them: Beta(k, count + 1 - k)."""
    reals = like_FN.shape[1]
    at_N1 = (torch.arange(reals, device=like_FN.device) + 0.5)[:, None] / reals
    below_K = torch.arange(count, device=like_FN.device)
    return (below_K * at_N1.log() + (count - 1 - below_K) * (-at_N1).log1p()).softmax(0)


class Textures:
    """The site's tiles, described once; `distance` of fakes to them. Immutable."""

    def __init__(self, pixels_NCHW: Tensor, labels_N: Tensor, classes: int, device: torch.device) -> None:
        """uint8 tiles in shuffled order, with labels; draws nothing from torch's global random numbers."""
        with torch.no_grad():
            self._levels = [level.on(device) for level in _levels(to_model_range(pixels_NCHW[:_SAMPLE]))]
            parts = [to_model_range(part.to(device)) for part in pixels_NCHW.split(_AT_ONCE)]
            numbers_NF = torch.cat([self._numbers(part, 0.0, 0.0) for part in parts])
            self._mean_F = numbers_NF.mean(0)
            self._deviation_F = numbers_NF.std(0, correction=0) + 1e-3
            numbers_NF = (numbers_NF - self._mean_F) / self._deviation_F
            groups = [numbers_NF[labels_N.to(device) == k] for k in range(classes)]
            # a class without a tile is compared with all of them
            self._reals = [group if len(group) else numbers_NF for group in [*groups, numbers_NF]]
            self._values = [_Values(group) for group in self._reals]

    def distance(self, fake_BCHW: Tensor, asked_B: Tensor) -> Tensor:
        """In deviations of the reals' numbers, a scalar; draws from torch's random numbers."""
        top, left = torch.rand(2).tolist()
        numbers_BF = (self._numbers(fake_BCHW.float(), top, left) - self._mean_F) / self._deviation_F
        mixing_FM = onto(fake_BCHW.device, torch.randn(numbers_BF.shape[1], MIXTURES))
        total = numbers_BF.new_zeros(())
        for kind, chosen_K in self._groups(asked_B):
            mine_KF = numbers_BF[chosen_K]
            with torch.no_grad():
                mixed_NM = self._reals[kind] @ mixing_FM
                scale_M = 1 / (mixed_NM.std(0, correction=0) + 1e-3)
                targets_FK = self._values[kind].targets(len(mine_KF))
                mixed_targets_MK = _Values(mixed_NM * scale_M).targets(len(mine_KF))
            apart = smooth_l1_loss(mine_KF.T.sort(1).values, targets_FK)
            apart = apart + smooth_l1_loss((mine_KF @ mixing_FM * scale_M).T.sort(1).values, mixed_targets_MK)
            total = total + apart * (len(mine_KF) / len(asked_B))
        return total

    def _numbers(self, images_BCHW: Tensor, top: float, left: float) -> Tensor:
        return torch.cat([found for level in self._levels for found in level.numbers(images_BCHW, top, left)], 1)

    def _groups(self, asked_B: Tensor) -> list[tuple[int, Tensor]]:
        """Fakes by class with the index of their reals; in one heap when a class has too few to compare."""
        classes = len(self._reals) - 1
        groups = [(asked_B == k).nonzero().flatten() for k in range(classes)]
        if any(0 < len(group) < _FEWEST for group in groups):
            return [(classes, torch.arange(len(asked_B), device=asked_B.device))]
        return [(k, group) for k, group in enumerate(groups) if len(group)]


def _levels(sample_NCHW: Tensor) -> list[_Level]:
    """Filters for each size, made on the CPU from some of the reals."""
    numbers, levels, ratio = torch.Generator().manual_seed(_SEED), [], 1
    while True:
        images_NCHW = _smaller(sample_NCHW, ratio)
        edge = images_NCHW.shape[-1]
        stride = max(1, edge // _GRID)
        variances_P, vectors_PP, mean_P = _eigenvectors(images_NCHW, _EDGE, stride, numbers)
        plain = _drawn(variances_P, vectors_PP, mean_P, _EDGE, stride, numbers)
        energies = second = None
        if edge >= 2 * _SMALLEST:
            weight_DP = (vectors_PP * _inverse(variances_P)).T[:_ENERGIES]
            energies = _Filters(weight_DP.reshape(-1, 3, _EDGE, _EDGE), -(weight_DP @ mean_P), max(1, edge // (2 * _GRID)))
            second = _drawn(*_eigenvectors(avg_pool2d(energies(images_NCHW).abs(), 2), 3, 1, numbers), 3, 1, numbers)
        levels.append(_Level(ratio, plain, energies, second))
        if edge % 2 or edge // 2 < _SMALLEST:
            return levels
        ratio *= 2


def _eigenvectors(images_NCHW: Tensor, edge: int, stride: int, numbers: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Of the patches' covariance, largest variance first: variances, vectors in columns, and the mean patch."""
    patches_NP = unfold(images_NCHW, edge, stride=stride).transpose(1, 2).flatten(0, 1)
    patches_NP = patches_NP[torch.randperm(len(patches_NP), generator=numbers)[:80_000]]
    mean_P = patches_NP.mean(0)
    patches_NP = patches_NP - mean_P
    variances_P, vectors_PP = torch.linalg.eigh(patches_NP.T @ patches_NP / len(patches_NP))
    return variances_P.flip(0).clamp_min(0), vectors_PP.flip(1), mean_P


def _drawn(
    variances_P: Tensor, vectors_PP: Tensor, mean_P: Tensor, edge: int, stride: int, numbers: torch.Generator
) -> _Filters:
    """Eigenvectors in turn, by themselves or two or three of them mixed.

    A mixture of all would be near normal whatever the tissue, by the central limit theorem, and tell little.
    """
    count = max(1, int((variances_P > _DROPPED * variances_P[0]).sum()))
    shares_DP = torch.zeros(FILTERS, len(variances_P))
    for number in range(FILTERS):
        mixed, turn = number % 3 + 1, number // 3
        chosen = torch.randperm(count, generator=numbers)[:mixed] if mixed > 1 else torch.tensor([turn % count])
        shares_DP[number, chosen] = normalize(torch.randn(len(chosen), generator=numbers), dim=0)
    weight_DP = (shares_DP * _inverse(variances_P)) @ vectors_PP.T
    return _Filters(weight_DP.view(FILTERS, -1, edge, edge), -(weight_DP @ mean_P), stride)


def _inverse(variances_P: Tensor) -> Tensor:
    """Of the deviations."""
    return (variances_P + _FLOOR * variances_P.sum() + torch.finfo(variances_P.dtype).eps).rsqrt()


def _binned(responses_BDHW: Tensor) -> Tensor:
    """Each filter's responses sorted, and the means of equal bins: (B, D · BINS)."""
    sorted_BDP = responses_BDHW.flatten(2).sort(2).values
    size = sorted_BDP.shape[2] // BINS
    first = (sorted_BDP.shape[2] - size * BINS) // 2
    bins_BDKP = sorted_BDP[:, :, first : first + size * BINS].reshape(*sorted_BDP.shape[:2], BINS, size)
    return bins_BDKP.mean(3).flatten(1)


def _from(images_BCHW: Tensor, stride: int, top: float, left: float) -> Tensor:
    return images_BCHW[:, :, int(top * stride) :, int(left * stride) :]


def _smaller(images_BCHW: Tensor, ratio: int) -> Tensor:
    return avg_pool2d(images_BCHW, ratio) if ratio > 1 else images_BCHW
