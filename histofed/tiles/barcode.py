"""Which patient a tile belongs to, read from the TCGA barcode in its file name (`paper.md` §6).

    TCGA-QG-A5YX-01Z-00-DX1.<UUID>_(x,y).jpg          TCGA-CRC-DX
    blk-AAADTPTGAKQV-TCGA-A6-3809-01Z-00-DX1.png      its sister record, Zenodo 2530835

The patient is the unit of every split, so a name without a barcode is refused: taking the file name for a patient would
put one person's tiles on both sides of a split without anybody noticing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_BARCODE: Final = re.compile(
    r"(?<![A-Z0-9])(TCGA-([A-Z0-9]{2})-([A-Z0-9]{4}))-(\d{2}[A-Z])-(\d{2})-(DX\d+|[A-Z0-9]{2,3})"
    r"(?:\.([0-9a-f-]{36}))?(?:_\(\s*([\d.]+)\s*,\s*([\d.]+)\s*\))?",
    # ASCII: without it \d would take digits of every script for a slide number
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, order=True)
class Barcode:
    """Where a tile comes from; all upper case."""

    patient: str
    """`TCGA-QG-A5YX`."""
    source_site: str
    """`QG`: the tissue source site, the real hospital."""
    slide: str
    """`TCGA-QG-A5YX-01Z-00-DX1`; a patient may have several."""


def parse(name: str) -> Barcode | None:
    """The barcode in a file's name; None where there is none, and then there is no patient."""
    found = _BARCODE.search(name)
    if found is None:
        return None
    patient, source_site, _, sample, portion, slide = found.groups()[:6]
    return Barcode(patient.upper(), source_site.upper(), f"{patient}-{sample}-{portion}-{slide}".upper())
