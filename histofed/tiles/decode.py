"""One image file → one square uint8 array, or a reason why not. Images are untrusted input and are opened that way.

Only JPEG, PNG and TIFF decoders are reachable; size and mode are judged from the header, before a pixel is decoded.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from histofed.tiles import disk

Pixels: TypeAlias = npt.NDArray[np.uint8]

FORMATS: Final = ("JPEG", "PNG", "TIFF")
MINIMUM_EDGE: Final = 32
"""Pixels; a smaller picture is a thumbnail or a rest at a slide's border, not a tile."""
MAXIMUM_PIXELS: Final = 64 * 1024 * 1024
"""Tiles have 0.05 to 1 million pixels; what claims more than this is a decompression bomb or a whole slide."""
MAXIMUM_BYTES: Final = 4 * MAXIMUM_PIXELS
"""Even without compression a tile needs less."""

_NOT_RGB: Final = {"L": "grey", "1": "black and white", "P": "palette", "CMYK": "CMYK", "RGBA": "alpha", "LA": "alpha"}
_DAMAGED: Final = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Warning),
    *(TypeError, LookupError, AttributeError, ArithmeticError),
)
"""What Pillow raises at a file that is not what its format says; the last four where it trusts what it has read."""


class Refused(Exception):
    """A verdict on a file, counted by its caller and never an error of the program; the message is the reason."""


def read_tile(path: Path, size: int, minimum_edge: int = MINIMUM_EDGE) -> Pixels:
    """Decode, cut the middle square, resize to `size` pixels: uint8 (3, size, size). Raises `Refused`, `TryLater`."""
    with suspicion_is_enough():
        return decode_tile(read_bytes(path), size, minimum_edge)


@contextlib.contextmanager
def suspicion_is_enough() -> Iterator[None]:
    """Pillow only warns about what it suspects; inside the block that refuses a tile.

    The filter is the process's, not the thread's: who decodes in threads enters it once around all of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def read_bytes(path: Path) -> bytes:
    """The file as it is, so that what is hashed and what is decoded are the same bytes.

    Raises `Refused`, and `TryLater` when the disk is at fault and not the file.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAXIMUM_BYTES:
                raise Refused("far too large a file for a tile")
            return file.read()
    except PermissionError as error:
        raise Refused("may not be read by this user") from error
    except OSError as error:
        raise (Refused("truncated or damaged") if disk.of_one_file(error) else disk.trouble(error)) from error


def decode_tile(data: bytes, size: int, minimum_edge: int = MINIMUM_EDGE) -> Pixels:
    """A file's bytes as uint8 (3, size, size); the same bytes always give the same pixels. Raises `Refused`."""
    return _decode(data, minimum_edge, lambda image: _square(image, size))


def decode_picture(data: bytes, minimum_edge: int = MINIMUM_EDGE) -> Pixels:
    """A file's bytes as they are, neither cut nor resized: uint8 (H, W, 3). Raises `Refused`."""
    return _decode(data, minimum_edge, lambda image: np.asarray(image, dtype=np.uint8))


def _decode(data: bytes, minimum_edge: int, take: Callable[[Image.Image], Pixels]) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _judge(image, minimum_edge)
            image.load()
    except UnidentifiedImageError as error:
        raise Refused("not a JPEG, PNG or TIFF image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused("far too many pixels for a tile") from error
    except _DAMAGED as error:
        raise Refused("truncated or damaged") from error
    # outside: what goes wrong here is no file's fault
    return take(image)


def _judge(image: Image.Image, minimum_edge: int) -> None:
    """Refuse by the header alone."""
    if image.width * image.height > MAXIMUM_PIXELS:
        raise Refused("far too many pixels for a tile")
    if min(image.size) < minimum_edge:
        raise Refused(f"smaller than {minimum_edge} pixels")
    if getattr(image, "n_frames", 1) != 1:
        raise Refused("more than one picture in the file")
    if _is_16_bit(image):
        raise Refused("not 8-bit RGB: 16 bits")
    if image.mode != "RGB":
        raise Refused(f"not 8-bit RGB: {_NOT_RGB.get(image.mode, 'another mode')}")
    if "transparency" in image.info:
        raise Refused("not 8-bit RGB: alpha")


def _is_16_bit(image: Image.Image) -> bool:
    """Pillow opens 16-bit RGB as 8-bit RGB; what it was is told by a TIFF's tag, and by the raw mode of a PNG's tiles."""
    if isinstance(image, TiffImageFile):
        bits: tuple[int, ...] = image.tag_v2.get(BITSPERSAMPLE, (1,))
        return max(bits) > 8
    raw: Any = getattr(image, "tile", ())
    return image.mode.startswith(("I", "F")) or any("16" in str(part[3]) for part in raw)


def _square(image: Image.Image, size: int) -> Pixels:
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    # box averages every source pixel once: no aliasing of nuclei when shrinking, no ringing at their edges
    how = Image.Resampling.BOX if edge >= size else Image.Resampling.BICUBIC
    resized = image.resize((size, size), how, box=(left, top, left + edge, top + edge))
    return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))
