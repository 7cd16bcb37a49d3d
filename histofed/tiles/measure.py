"""What one tile is like: how sharp, how much tissue, how stained, and a hash that survives compression. Pure; numpy alone.

Called by `survey.py` for `histofed data check`; nothing here decides whether a tile is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from histofed.tiles.decode import Pixels

Floats = npt.NDArray[np.float32]

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
"""ITU-R BT.601 luma."""
_DENSITY: Final = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density of a byte; white is 0."""
_TISSUE_DENSITY: Final = 0.15
"""Mean optical density above which a pixel is tissue and not glass (Macenko et al., ISBI 2009, β)."""
_STAINS: Final = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
"""Optical density of haematoxylin, eosin and DAB in R, G, B (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001)."""
_HASH_EDGE: Final = 32
_HASH_BITS: Final = 8


@dataclass(frozen=True)
class Measures:
    """One tile in numbers."""

    width: int
    height: int
    focus: float
    """Variance of the Laplacian of the luma (Pech-Pacheco et al., ICPR 2000); low is blurred. Grows with magnification."""
    tissue: float
    """Share of pixels that are tissue, 0 to 1."""
    haematoxylin: float
    """Mean over the tissue, in units of the stain's own optical density; 0 where there is none."""
    eosin: float
    """As haematoxylin."""
    brightness: float
    """Mean luma, 0 to 255."""
    perceptual: int
    """64 bits; tiles that look the same differ in few (`perceptual_hash`)."""


def measure(picture: Pixels) -> Measures:
    """Measure a picture (H, W, 3) of at least 3 x 3 pixels."""
    # three planes, because numpy is several times slower along a last axis of three
    red, green, blue = (np.ascontiguousarray(picture[..., channel]) for channel in range(3))
    grey: Floats = _RED * red.astype(np.float32) + _GREEN * green.astype(np.float32) + _BLUE * blue.astype(np.float32)
    densities = [_DENSITY[plane] for plane in (red, green, blue)]
    tissue = densities[0] + densities[1] + densities[2] > 3 * _TISSUE_DENSITY
    haematoxylin, eosin = _stains([density[tissue] for density in densities])
    return Measures(
        width=picture.shape[1],
        height=picture.shape[0],
        focus=focus(grey),
        tissue=float(tissue.mean()),
        haematoxylin=haematoxylin,
        eosin=eosin,
        brightness=float(grey.mean()),
        perceptual=perceptual_hash(grey),
    )


def focus(grey: Floats) -> float:
    """Variance of the 4-neighbour Laplacian of (H, W)."""
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float64))


def perceptual_hash(grey: Floats) -> int:
    """pHash (Zauner 2010): signs of the 64 lowest frequencies of a 32 x 32 copy against their median, as 64 bits.

    Compression, scaling and a little noise flip a few bits; two different tiles differ in about 32. A turned or mirrored
    copy is another picture to it.
    """
    basis = _cosines(_HASH_EDGE, _HASH_BITS + 1)[1:]  # the constant frequency is brightness and tells nothing
    frequencies = basis @ _shrink(grey, _HASH_EDGE) @ basis.T
    bits = (frequencies > np.median(frequencies)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _stains(densities: Sequence[Floats]) -> tuple[float, float]:
    """Mean haematoxylin and eosin of tissue pixels by colour deconvolution; R, G and B densities, (N,) each."""
    if not len(densities[0]):
        return 0.0, 0.0
    # the mean of the solutions is the solution of the mean
    amounts = np.linalg.solve(_STAINS.T, [density.mean(dtype=np.float64) for density in densities])
    return float(amounts[0]), float(amounts[1])


def _shrink(grey: Floats, edge: int) -> npt.NDArray[np.float64]:
    """Averages over an `edge` x `edge` grid of (H, W); cells differ by at most a pixel."""
    rows, columns = (np.arange(edge) * length // edge for length in grey.shape)
    sums = np.add.reduceat(np.add.reduceat(grey.astype(np.float64), rows, 0), columns, 1)
    heights, widths = (np.diff([*starts, length]) for starts, length in zip((rows, columns), grey.shape, strict=True))
    means: npt.NDArray[np.float64] = sums / np.outer(heights, widths)
    return means


def _cosines(length: int, count: int) -> npt.NDArray[np.float64]:
    """The first `count` rows of the DCT-II of `length` samples, not normalised."""
    angles: npt.NDArray[np.float64] = np.pi / length * np.outer(np.arange(count), np.arange(length) + 0.5)
    return np.cos(angles)
