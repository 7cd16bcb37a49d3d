"""Pictures that look like stained colorectal tissue, from random numbers; nobody's tissue.

A tile is two fields, how much hematoxylin and how much eosin each point holds, turned into colour by the Beer-Lambert law
with one absorption vector per stain (Macenko et al. 2009). Tissue is drawn at twice the size and averaged down.

Five architectures, told apart by what a pathologist would name: `glands` forms tubules with palisaded nuclei around a lumen
in fibrous stroma (the usual microsatellite-stable tumour); `sheets` is solid and poorly differentiated, with crowds of
lymphocytes and pools of mucin (what raises suspicion of MSI-high); `lymphoid`, `mucin` and `stroma` are what lies around a
tumour. All lengths are micrometres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Field: TypeAlias = npt.NDArray[np.floating[Any]]
Architecture: TypeAlias = Literal["sheets", "glands", "lymphoid", "mucin", "stroma"]

FIELD_OF_VIEW: Final = 96.0
"""Edge of a drawn tile in micrometres; published tiles show 112 to 256."""
_OVERSAMPLING: Final = 2
_HEMATOXYLIN: Final = (0.5626, 0.7201, 0.4062)
_EOSIN: Final = (0.2159, 0.8012, 0.5581)


@dataclass(frozen=True)
class Stain:
    """One laboratory's colours: absorption of each stain per channel, stain strength, and the lamp."""

    hematoxylin: Field
    eosin: Field
    strength: tuple[float, float]
    lamp: float


@dataclass(frozen=True)
class Tumour:
    """What a patient's tiles have in common."""

    nucleus: float
    """Radius of a tumour cell's nucleus."""
    crowding: float
    """1 is usual; more means more nuclei and lymphocytes."""
    differentiation: float
    """0..1: how much gland (or, in sheets, how little mucin) there is."""


def draw_stain(rng: np.random.Generator) -> Stain:
    """A laboratory."""
    return Stain(
        hematoxylin=_unit(np.array(_HEMATOXYLIN) + rng.normal(0, 0.03, 3)),
        eosin=_unit(np.array(_EOSIN) + rng.normal(0, 0.03, 3)),
        strength=(float(rng.uniform(0.9, 1.15)), float(rng.uniform(0.85, 1.25))),
        lamp=float(rng.uniform(0.94, 1.0)),
    )


def draw_tumour(rng: np.random.Generator) -> Tumour:
    """A patient."""
    return Tumour(float(rng.uniform(3.0, 3.9)), float(rng.uniform(0.8, 1.25)), float(rng.uniform(0.2, 1.0)))


def draw_tile(
    rng: np.random.Generator, architecture: Architecture, tumour: Tumour, stain: Stain, size: int
) -> npt.NDArray[np.uint8]:
    """One tile, uint8 (size, size, 3)."""
    canvas = _Canvas(rng, size * _OVERSAMPLING)
    match architecture:
        case "glands":
            _glands(canvas, tumour)
        case "sheets":
            _sheets(canvas, tumour)
        case "lymphoid":
            _lymphoid(canvas, tumour)
        case "mucin":
            _mucin(canvas, tumour)
        case "stroma":
            _stroma(canvas, tumour, rng.uniform(0, np.pi))
    return _develop(canvas, stain, size)


class _Canvas:
    """Two stain fields and the pen that puts nuclei on them."""

    def __init__(self, rng: np.random.Generator, edge: int) -> None:
        self.rng, self.edge, self.scale = rng, edge, edge / FIELD_OF_VIEW
        self.y, self.x = (np.mgrid[0:edge, 0:edge] / self.scale).astype(np.float32)
        frequency = np.fft.fftfreq(edge), np.fft.rfftfreq(edge)
        self._fy, self._fx = frequency[0][:, None].astype(np.float32), frequency[1][None, :].astype(np.float32)
        self.hematoxylin: Field = np.zeros((edge, edge), np.float32)
        self.eosin: Field = np.zeros((edge, edge), np.float32)

    def noise(self, grain: float, stretch: float = 1.0, angle: float = 0.0) -> Field:
        """Smooth noise, mean 0, deviation 1; `grain` is its coarseness, `stretch` > 1 draws it out along `angle`."""
        along = self._fx * np.cos(angle) + self._fy * np.sin(angle)
        across = self._fy * np.cos(angle) - self._fx * np.sin(angle)
        width = 2 * (np.pi * grain * self.scale) ** 2
        spectrum = np.fft.rfft2(self.rng.standard_normal((self.edge, self.edge), np.float32))
        spectrum *= np.exp(-width * ((along * stretch) ** 2 + across**2))
        field = np.fft.irfft2(spectrum, s=(self.edge, self.edge))
        smooth: Field = (field - field.mean()) / field.std()
        return smooth

    def at(self, field: Field, points: Field) -> Field:
        """The field's values at points (N, 2: y, x), clipped to the canvas."""
        index = np.clip((points * self.scale).astype(int), 0, self.edge - 1)
        values: Field = field[index[:, 0], index[:, 1]]
        return values

    def box(self, centre: Field, reach: float) -> tuple[slice, slice]:
        """The part of the canvas within `reach` of a point; empty where they do not meet."""
        low, high = np.clip(np.round((centre - reach) * self.scale), 0, None), np.round((centre + reach) * self.scale)
        return slice(int(low[0]), max(0, int(high[0]))), slice(int(low[1]), max(0, int(high[1])))

    def scatter(self, spacing: float) -> Field:
        """Points about `spacing` apart, all over the canvas and a little beyond: a jittered grid, (N, 2)."""
        line = np.arange(-spacing, FIELD_OF_VIEW + spacing, spacing)
        grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
        return np.asarray(grid + self.rng.uniform(-0.42, 0.42, grid.shape) * spacing)

    def nuclei(self, points: Field, radii: Field, angles: Field, darkness: float, vesicular: float = 0.0) -> None:
        """Ellipses of hematoxylin at points (N, 2), half axes (N, 2); `vesicular` ones are paler inside."""
        corners, reach = np.round(points * self.scale).astype(int), int(np.ceil(radii.max(initial=0) * self.scale)) + 1
        seen = ((corners > -reach) & (corners < self.edge + reach)).all(1)
        corners, a, b = corners[seen], *(radii[seen].T[:, :, None, None] * self.scale).astype(np.float32)
        cos, sin = (turn(angles[seen])[:, None, None].astype(np.float32) for turn in (np.cos, np.sin))
        step = np.arange(-reach, reach + 1, dtype=np.float32)
        dy, dx = step[:, None], step
        r = np.hypot((dx * cos + dy * sin) / a, (dy * cos - dx * sin) / b)
        tone = darkness * self.rng.uniform(0.75, 1.2, len(corners))[:, None, None].astype(np.float32)
        ink = np.clip((1 - r) * (a + b) / 2 + 0.5, 0, 1) * tone * (1 - vesicular * np.clip(1.1 - r, 0, 1))
        which, row, column = np.nonzero(ink)
        rows, columns = corners[which, 0] + row - reach, corners[which, 1] + column - reach
        inside = (rows >= 0) & (rows < self.edge) & (columns >= 0) & (columns < self.edge)
        values = ink[which, row, column][inside]
        np.maximum.at(self.hematoxylin, (rows[inside], columns[inside]), values)


def _glands(canvas: _Canvas, tumour: Tumour) -> None:
    """Tubules around a lumen, nuclei in a palisade near their outer border, fibrous stroma between them."""
    rng = canvas.rng
    _stroma(canvas, tumour, rng.uniform(0, np.pi))
    cytoplasm = 0.34 + 0.05 * canvas.noise(1.2), 0.46 + 0.07 * canvas.noise(2.0)
    centres = canvas.scatter(rng.uniform(46, 58))
    centres = centres[rng.random(len(centres)) < 0.5 + 0.5 * tumour.differentiation]
    cells = [_gland(canvas, tumour, centre, cytoplasm) for centre in centres]
    if cells:
        points, radii, angles = (np.concatenate(part) for part in zip(*cells, strict=True))
        canvas.nuclei(points, radii, angles, 1.4, 0.3)


def _gland(canvas: _Canvas, tumour: Tumour, centre: Field, cytoplasm: tuple[Field, Field]) -> tuple[Field, Field, Field]:
    """Paint wall and lumen of one tubule; returns its nuclei: points, half axes, angles."""
    rng = canvas.rng
    outer, lumen = rng.uniform(19, 29), rng.uniform(0.3, 0.55)
    phase, swing = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.03, 0.14, 3)
    box = canvas.box(centre, 1.45 * outer)
    dy, dx = canvas.y[box] - centre[0], canvas.x[box] - centre[1]
    rho = np.hypot(dy, dx) / (outer * _outline(np.arctan2(dy, dx), phase, swing))
    wall, hollow = np.clip((1.0 - rho) * 12, 0, 1), np.clip((lumen - rho) * 10, 0, 1)
    for field, inside, rest in zip((canvas.hematoxylin, canvas.eosin), cytoplasm, (0.07, 0.10), strict=True):
        field[box] = (field[box] * (1 - wall) + wall * inside[box]) * (1 - (1 - rest) * hollow)
    around = np.concatenate([np.arange(0, 2 * np.pi, 5.6 / (outer * ring) / tumour.crowding) for ring in (0.86, 0.70)])
    ring = np.where(np.arange(len(around)) <= around.argmax(), 0.86, 0.70) + rng.normal(0, 0.035, len(around))
    around += rng.normal(0, 0.06, len(around))
    distance = outer * ring * _outline(around, phase, swing)
    points = centre + np.stack([np.sin(around), np.cos(around)], -1) * distance[:, None]
    axes = np.stack([rng.uniform(1.0, 1.35, len(around)), rng.uniform(0.5, 0.68, len(around))], -1)
    return points, axes * tumour.nucleus, around + rng.normal(0, 0.18, len(around))


def _outline(around: Field, phase: Field, swing: Field) -> Field:
    """How far a gland's border lies out at an angle, 1 on average."""
    return np.asarray(1 + sum(s * np.cos(k * around + p) for k, (s, p) in enumerate(zip(swing, phase, strict=True), 2)))


def _stroma(canvas: _Canvas, tumour: Tumour, angle: float) -> None:
    """Collagen in one direction, a few spindle cells along it."""
    fibres = canvas.noise(0.9, 6.0, angle)
    canvas.eosin = np.clip(0.60 + 0.13 * fibres + 0.08 * canvas.noise(6), 0.12, 1.2)
    canvas.hematoxylin = np.clip(0.10 + 0.05 * canvas.noise(1.5), 0, 1)
    points = canvas.scatter(11 / tumour.crowding)
    points = points[canvas.rng.random(len(points)) < 0.6]
    radii = np.stack([canvas.rng.uniform(3.2, 5.0, len(points)), canvas.rng.uniform(1.0, 1.5, len(points))], -1)
    canvas.nuclei(points, radii, angle + canvas.rng.normal(0, 0.2, len(points)), 1.3)


def _sheets(canvas: _Canvas, tumour: Tumour) -> None:
    """Large pale nuclei in no order, lymphocytes in crowds, pools of mucin."""
    rng = canvas.rng
    canvas.eosin = np.clip(0.46 + 0.08 * canvas.noise(2.0) + 0.07 * canvas.noise(9), 0.05, 1)
    canvas.hematoxylin = np.clip(0.33 + 0.07 * canvas.noise(1.0), 0.05, 1)
    points = canvas.scatter(8.6 / tumour.crowding)
    size = tumour.nucleus * np.exp(rng.normal(0.12, 0.18, len(points)))
    radii = np.stack([size * rng.uniform(1.0, 1.25, len(points)), size * rng.uniform(0.75, 1.0, len(points))], -1)
    canvas.nuclei(points, radii, rng.uniform(0, np.pi, len(points)), 1.2, 0.45)
    mucin = np.clip((canvas.noise(11) - 0.5 - 1.1 * tumour.differentiation) * 4, 0, 1)
    canvas.hematoxylin = canvas.hematoxylin * (1 - mucin) + mucin * np.clip(0.17 + 0.05 * canvas.noise(3, 3.0), 0, 1)
    canvas.eosin *= 1 - 0.93 * mucin
    crowd = canvas.noise(13)
    lymphocytes = canvas.scatter(5.0)
    dense = canvas.at(crowd, lymphocytes) > 0.55 - 0.5 * (tumour.crowding - 0.8)
    lymphocytes = lymphocytes[dense & (canvas.at(mucin, lymphocytes) < 0.7)]
    canvas.nuclei(lymphocytes, rng.uniform(2.0, 2.5, (len(lymphocytes), 2)), np.zeros(len(lymphocytes)), 2.1)


def _lymphoid(canvas: _Canvas, tumour: Tumour) -> None:
    """Small dark round nuclei side by side, almost no cytoplasm."""
    rng = canvas.rng
    canvas.eosin = np.clip(0.28 + 0.06 * canvas.noise(3), 0.05, 1)
    canvas.hematoxylin = np.clip(0.25 + 0.06 * canvas.noise(2), 0.05, 1)
    points = canvas.scatter(5.2 / tumour.crowding)
    points = points[rng.random(len(points)) < 0.92]
    canvas.nuclei(points, rng.uniform(1.9, 2.4, (len(points), 2)), np.zeros(len(points)), 2.0)


def _mucin(canvas: _Canvas, tumour: Tumour) -> None:
    """A pale lake with bluish strands and a few cells that float in it."""
    rng = canvas.rng
    canvas.hematoxylin = np.clip(0.16 + 0.06 * canvas.noise(3, 4.0, rng.uniform(0, np.pi)), 0.02, 1)
    canvas.eosin = np.clip(0.04 + 0.02 * canvas.noise(6), 0, 1)
    points = canvas.scatter(24)
    points = points[rng.random(len(points)) < 0.5 * tumour.crowding]
    canvas.nuclei(points, tumour.nucleus * rng.uniform(0.7, 1.0, (len(points), 2)), np.zeros(len(points)), 1.2, 0.3)


def _develop(canvas: _Canvas, stain: Stain, size: int) -> npt.NDArray[np.uint8]:
    """Stain fields → colour at the tile's size."""
    hematoxylin = np.clip(canvas.hematoxylin, 0, None) * stain.strength[0]
    # a nucleus takes little eosin
    eosin = np.clip(canvas.eosin, 0, None) * stain.strength[1] * (1 - 0.35 * np.clip(canvas.hematoxylin, 0, 1))
    density = hematoxylin[..., None] * stain.hematoxylin + eosin[..., None] * stain.eosin
    light = 255 * stain.lamp * np.exp(-density)
    light = light.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean((1, 3))
    light += canvas.rng.normal(0, 2.0, light.shape)  # the camera
    return np.asarray(np.clip(np.rint(light), 0, 255), np.uint8)


def _unit(vector: Field) -> Field:
    positive = np.clip(vector, 0.02, None)
    return np.asarray(positive / np.linalg.norm(positive))
