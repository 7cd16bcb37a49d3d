"""Reads a sample sheet as a person does: how many rows of pictures are there?"""

from __future__ import annotations

import numpy as np
from PIL import Image


def rows_of(sheet: Image.Image) -> int:
    """Stretches of lines that are not all of one colour."""
    pixels = np.asarray(sheet.convert("RGB"), dtype=np.int16)
    flat = (pixels == pixels[:, :1]).all(axis=(1, 2))
    return int(np.count_nonzero(np.diff(np.concatenate([[True], flat])) & ~flat))
