"""`patients.csv`: whose tile a file is, for names that carry no TCGA barcode. Written by the hospital, read by `folder`.

    file,patient,hospital
    MSIH/0001.png,P-17,north
    MSIH/0002.png,P-17,north

UTF-8 with one header line, commas or semicolons. `file` is the path below the folder in which the table lies, with `/`;
`patient` is any text that means one person, in any capitals, accents as one character or two; `hospital` may be left out.
The table covers its folder and everything below. A barcode and a table that disagree are refused: one of the two would put
a patient on both sides of a split.
"""

from __future__ import annotations

import csv
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from histofed.base.errors import BadData
from histofed.tiles import barcode, disk

TABLE: Final = "patients.csv"
UNKNOWN: Final = f"no patient id in the name and no line in {TABLE}"
"""Why a file without a patient is refused."""
MAXIMUM_BYTES: Final = 64 * 1024 * 1024
"""A line per tile has about 100 bytes: room for half a million tiles."""
_MAXIMUM_NAME: Final = 200


@dataclass(frozen=True)
class Person:
    """Whose tile it is, and which hospital's."""

    patient: str
    hospital: str


class PatientTable:
    """One table; `file` is looked up below the folder it lies in."""

    def __init__(self, folder: Path, people: dict[str, Person]) -> None:
        self._folder, self._people = folder, people

    def find(self, path: Path) -> Person | None:
        """The person of a file; None where the table does not list it."""
        return self._people.get(path.relative_to(self._folder).as_posix())


def spelling(patient: str) -> str:
    """What two spellings of the same patient have in common: any capitals, accents either way."""
    # neither step alone: `upper` leaves ẞ as it is, `casefold` the i without a dot; either takes ΐ apart
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", patient).upper().casefold())


def read_table(folder: Path) -> PatientTable | None:
    """The table in `folder`; None where there is none.

    Raises `BadData` with the line, without what it says; `TryLater` when the disk cannot be read.
    """
    path = folder / TABLE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise BadData(f"{TABLE} is larger than {MAXIMUM_BYTES // 2**20} MiB; it should have one short line per tile")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and not disk.of_one_file(error):
            raise disk.trouble(error) from error
        raise BadData(
            f"{TABLE} cannot be read ({type(error).__name__}); save it as UTF-8 text that this user may read"
        ) from error
    return PatientTable(folder, _people(lines))


def identify(path: Path, tables: tuple[PatientTable, ...]) -> Person | None:
    """The person by barcode or by the nearest table (the last one); None where neither knows.

    Raises `BadData` when both know and disagree.
    """
    name = barcode.parse(path.name)
    listed = next((found for table in reversed(tables) if (found := table.find(path)) is not None), None)
    if name is None:
        return listed
    if listed is not None and spelling(listed.patient) != spelling(name.patient):
        raise BadData(f"{TABLE} names another patient than the barcode in a file's name; correct the one that is wrong")
    return Person(name.patient, (listed.hospital if listed else "") or name.source_site)


def _people(lines: list[str]) -> dict[str, Person]:
    header = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=";" if ";" in header else ",", strict=True)
    try:
        columns = [column.strip().lower() for column in next(reader, [])]
        if not {"file", "patient"} <= set(columns) or len(set(columns)) != len(columns):
            raise BadData(f"{TABLE} needs a first line with the columns file, patient and, if known, hospital")
        people: dict[str, Person] = {}
        for row in reader:
            if any(cell.strip() for cell in row):
                _add(people, dict(zip(columns, row, strict=False)), reader.line_num)
    except csv.Error as error:
        raise BadData(f"{TABLE}, line {reader.line_num} is no line of a table: {error}") from error
    return people


def _add(people: dict[str, Person], row: dict[str, str], line: int) -> None:
    """One line. Raises `BadData`."""
    file, patient, hospital = (row.get(column, "").strip() for column in ("file", "patient", "hospital"))
    # a letter and its accent as one character or as two, as systems differ: one person all the same
    patient = unicodedata.normalize("NFC", patient)
    if not file or not patient:
        raise BadData(f"{TABLE}, line {line}: a file or its patient is missing; a tile without a patient cannot be used")
    if max(len(patient), len(hospital)) > _MAXIMUM_NAME or not (patient + hospital).isprintable():
        raise BadData(f"{TABLE}, line {line}: a patient or hospital is not at most {_MAXIMUM_NAME} printable characters")
    place = PurePosixPath(file.replace("\\", "/")).as_posix()
    person = Person(patient, hospital)
    if people.setdefault(place, person) != person:
        raise BadData(f"{TABLE}, line {line}: the file is listed before with another patient or hospital; keep one line")
