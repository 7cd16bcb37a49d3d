"""`histofed-split.json`: what a folder made by `histofed data split` is for, so that nothing held out is trained on.

Every part of a split carries one. It says `train`, `validation` or `test`, and lists the held-out patients as salted
SHA-256, so that held-out tiles copied into a training folder are found too. `folder.scan`, the only way to training tiles,
obeys it (`paper.md` §6, leakage rule 2). The hashes hide names from a reader, not from somebody who can guess them.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from histofed.base import durable
from histofed.base.errors import BadData
from histofed.base.ids import Json, canonical
from histofed.tiles import disk
from histofed.tiles.patients import spelling

MANIFEST: Final = "histofed-split.json"
FORMAT: Final = "histofed.split/v1"
_MAXIMUM_BYTES: Final = 16 * 1024 * 1024

Role: TypeAlias = Literal["train", "validation", "test"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)


@dataclass(frozen=True)
class Manifest:
    """What a folder is for, and who must not be in a training folder of the same split."""

    role: Role
    salt: str
    held_out: frozenset[str]
    """`patient_hash(salt, one)` of every patient of validation and test, as written and as `spelling` has it."""

    def holds_out(self, patient: str) -> bool:
        """Whether this patient belongs to validation or test."""
        # splits of before ids were composed hashed accents as the table wrote them, and none had the spelling of all
        written = {unicodedata.normalize("NFC", patient), unicodedata.normalize("NFD", patient)}
        return any(patient_hash(self.salt, one) in self.held_out for one in {patient, spelling(patient), *written})


def patient_hash(salt: str, patient: str) -> str:
    """The entry of one way to write a patient, in any capitals that `upper` knows."""
    return hashlib.sha256(f"histofed.patient/v1\0{salt}\0{patient.upper()}".encode()).hexdigest()


def make_manifest(role: Role, salt: str, held_out: Iterable[str]) -> Manifest:
    """A manifest from the held-out patients' ids."""
    # as written too, which is all that an older release looks for
    written = {one for patient in held_out for one in (patient, spelling(patient))}
    return Manifest(role, salt, frozenset(patient_hash(salt, one) for one in written))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Mark a folder. Raises `CannotWriteState`."""
    document: dict[str, Json] = {
        "format": FORMAT,
        "role": manifest.role,
        "salt": manifest.salt,
        "held_out": sorted(manifest.held_out),
    }
    durable.replace(folder / MANIFEST, canonical(document) + b"\n", mode=0o644)


def read_manifest(folder: Path) -> Manifest | None:
    """The mark of a folder; None where there is none.

    Raises `BadData` for one that cannot be understood, `TryLater` when its disk cannot be read.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(_MAXIMUM_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise (_damaged() if disk.of_one_file(error) else disk.trouble(error)) from error
    try:
        found = json.loads(data) if len(data) <= _MAXIMUM_BYTES else None
    except ValueError as error:
        raise _damaged() from error
    match found:
        case {"format": str(form), "role": str(role), "salt": str(salt), "held_out": list(held_out)} if form == FORMAT:
            known = next((one for one in ROLES if one == role), None)
            if known is not None and all(isinstance(entry, str) for entry in held_out):
                return Manifest(known, salt, frozenset(held_out))
    raise _damaged()


def _damaged() -> BadData:
    return BadData(
        f"a {MANIFEST} under the data root cannot be understood, so what is held out is unknown; split the data again"
    )
