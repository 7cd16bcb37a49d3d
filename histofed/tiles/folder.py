"""From a folder of tiles to a `TileSet`, by names alone: a tree of any depth with class folders in it.

    [TRAIN|TEST|VALIDATION/] [anything/] CLASS/ [anything/] TILE

Both published layouts are taken unchanged, in any case: TCGA-CRC-DX (`TRAIN|TEST` / `MSIH|nonMSIH`) and its sister
(`MSIMUT|MSS`). Where a TRAIN folder exists only it is trained on, and a patient who is also in the TEST or VALIDATION beside
it is refused; a folder named or marked (`manifest.py`) as test or validation is never trained on, and without a TRAIN beside
it is refused. A tile's class is the class folder on its path, its patient the barcode in its name or the line of
`patients.csv`, in any capitals. The index of a class is its place in the experiment's list, never the alphabet's choice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from histofed.base.errors import BadData, HeldOutPatients
from histofed.tiles import disk, patients
from histofed.tiles.manifest import MANIFEST, Manifest, read_manifest
from histofed.tiles.patients import PatientTable, spelling
from histofed.tiles.tileset import Tile, TileSet, check_classes

PUBLISHED: Final[Mapping[str, str]] = {"MSIH": "MSIMUT", "nonMSIH": "MSS"}
"""The classes that the presets know, and what the sister data set calls them."""
_ALIASES: Final = {other.lower(): name.lower() for name, other in PUBLISHED.items()}
"""Two names of one class, lower case."""
_TRAIN: Final = frozenset({"train", "training"})
_HELD_OUT: Final = frozenset({"test", "testing", "val", "valid", "validation", "holdout", "held-out", "heldout"})
_PICTURES: Final = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
_NO_TILES: Final = frozenset({patients.TABLE, MANIFEST})
_TWO: Final = -1
"""In place of a class index: the path names two classes."""

NO_PATIENT: Final = patients.UNKNOWN
NOT_A_FILE: Final = "not a plain file"
OTHER_CLASS: Final = "in a folder that is no class of this experiment"
TWO_CLASSES: Final = "in the folders of two classes"


def class_key(name: str) -> str:
    """What two names of the same class have in common."""
    return _ALIASES.get(name.lower(), name.lower())


def folders_for(name: str) -> str:
    """What a class's folder may be called, in words: `MSIH or MSIMUT`."""
    published = (known for pair in PUBLISHED.items() for known in pair if class_key(known) == class_key(name))
    return " or ".join([name, *(known for known in published if known.lower() != name.lower())])


def is_held_out(relative: Path) -> bool:
    """Whether a path below the root leads through a folder named as test or validation."""
    return any(part.lower() in _HELD_OUT for part in relative.parts[:-1])


def scan(root: Path, classes: Sequence[str]) -> TileSet:
    """List the tiles under `root` that may be trained on; no picture is opened. The first class has index 0.

    Raises `BadData` when the root or a class's folder is missing, a class has no tile, or something held out is offered;
    `HeldOutPatients`, whose number stays at the site, for people held out; `TryLater` when the disk cannot be read.
    """
    if _HELD_OUT & {folder.name.lower() for folder in (root, root.resolve())}:  # a link's name, and `.`'s
        raise BadData("the data root is a test or validation folder; its patients must not be trained on")
    marks = [mark for folder in (root, *root.resolve().parents) if (mark := read_manifest(folder)) is not None]
    for mark in marks:
        _check_role(mark)
    walk = _walk(root, classes, training=True)
    tileset = walk.tileset()
    _check_nobody_held_out(walk.written, [*marks, *walk.marks])
    _check_halves(tileset, walk.held_out)
    _check_found(walk.missing())
    check_classes(tileset)
    return tileset


@dataclass(frozen=True, order=True)
class Unusable:
    """One file that cannot be trained on. `path` stays inside the site."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """A tree as it is, with names of files: it stays inside the site, unlike the counts of a `TileSet`."""

    tileset: TileSet
    unusable: tuple[Unusable, ...]
    missing: tuple[str, ...]
    """Classes without a folder."""


def look(root: Path, classes: Sequence[str]) -> Listing:
    """Everything under `root`, the held-out tiles too, and no word about what is missing: for looking, not for training.

    Raises `BadData` when the tree cannot be read, `TryLater` when its disk cannot.
    """
    walk = _walk(root, classes, training=False)
    return Listing(walk.tileset(), tuple(sorted(walk.unusable)), walk.missing())


def list_all(root: Path, classes: Sequence[str]) -> TileSet:
    """The tiles of `look`."""
    return look(root, classes).tileset


@disk.disk_errors()
def outermost(root: Path) -> tuple[str, ...]:
    """The names of the outermost folders of the training half that may be classes. Raises `BadData`."""
    top = root
    while inner := [entry for entry in _entries(top) if disk.is_folder(entry) and entry.name.lower() in _TRAIN]:
        top = Path(inner[0].path)
    names = (entry.name for entry in _entries(top) if disk.is_folder(entry) and not entry.name.startswith("."))
    return tuple(name for name in names if name.lower() not in _HELD_OUT)


def discover(root: Path) -> tuple[str, ...]:
    """The classes that a tree seems to have: MSIH and nonMSIH where one of them is there, else its outermost folders.

    Raises `BadData` when there is nothing to choose from.
    """
    published = tuple(PUBLISHED)
    if _walk(root, published, training=False).found:
        return published
    if not (names := outermost(root)):
        raise BadData("there is no folder that could be a class; name the classes with --classes")
    return names


@dataclass
class _Walk:
    """What is known so far."""

    classes: tuple[str, ...]
    index_of: Mapping[str, int]
    training: bool
    tiles: list[Tile] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)
    found: set[int] = field(default_factory=set)
    marks: list[Manifest] = field(default_factory=list)
    held_out: set[str] = field(default_factory=set)
    """Patients in a test or validation folder beside a training half."""
    texts: dict[str, str] = field(default_factory=dict)
    """Spelling → the first text met, in the order of the walk: how this patient is called everywhere."""
    written: dict[str, set[str]] = field(default_factory=dict)
    """Patient of a tile → every text met: a split may hold out any one of them."""

    def tileset(self) -> TileSet:
        """The listing in its fixed order."""
        return TileSet(self.classes, tuple(sorted(self.tiles)), dict(Counter(file.reason for file in self.unusable)))

    def refuse(self, path: Path, reason: str) -> None:
        """Keep a file that is no tile to train on."""
        self.unusable.append(Unusable(path, reason))

    def missing(self) -> tuple[str, ...]:
        """The classes of which no folder was met."""
        return tuple(name for index, name in enumerate(self.classes) if index not in self.found)


@disk.disk_errors()
def _walk(root: Path, classes: Sequence[str], *, training: bool) -> _Walk:
    index_of = {class_key(name): index for index, name in enumerate(classes)}
    if len(index_of) != len(classes):
        raise BadData(f"classes {', '.join(classes)} name one class twice (MSIMUT is MSIH, MSS is nonMSIH)")
    walk = _Walk(tuple(classes), index_of, training)
    try:
        _read(walk, root, None, (), frozenset())
    except Circle as circle:
        raise BadData("a link under the data root leads back to a folder above it; remove the link") from circle
    return walk


class Circle(Exception):
    """Why a tree has no end; the cause of a `BadData`. Its text is empty: `link` stays inside the site."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.link = next((path for path in (folder, *folder.parents) if path.is_symlink()), folder)


def _read(
    walk: _Walk,
    folder: Path,
    index: int | None,
    tables: tuple[PatientTable, ...],
    above: frozenset[tuple[int, int]],
) -> None:
    """One folder and what is below it. `index` is the class it belongs to, None outside of every class folder."""
    entries = _entries(folder)
    here = folder.stat()
    if (here.st_dev, here.st_ino) in above:
        raise Circle(folder)
    above |= {(here.st_dev, here.st_ino)}
    if (table := patients.read_table(folder)) is not None:
        tables = (*tables, table)
    if (mark := read_manifest(folder)) is not None:
        walk.marks.append(mark)
    inner = [entry for entry in entries if disk.is_folder(entry)]
    chosen = _to_be_read(inner, mark) if walk.training else inner
    for entry in inner:
        if entry not in chosen and entry.name.lower() in _HELD_OUT:
            looked_at = _Walk(walk.classes, walk.index_of, training=False, texts=walk.texts)
            _read(looked_at, Path(entry.path), _inner_class(looked_at, entry.name, index), tables, above)
            walk.held_out.update(tile.patient for tile in looked_at.tiles)
    for entry in chosen:
        if not entry.name.startswith("."):
            _read(walk, Path(entry.path), _inner_class(walk, entry.name, index), tables, above)
    for entry in entries:
        if not disk.is_folder(entry) and entry.name not in _NO_TILES:
            _take(walk, entry, index, tables)


def _to_be_read(inner: list[os.DirEntry[str]], mark: Manifest | None) -> list[os.DirEntry[str]]:
    """The folders of the training half. Raises `BadData` for something held out without its training half."""
    if mark is not None:
        _check_role(mark)
    halves = [entry for entry in inner if entry.name.lower() in _TRAIN]
    if halves:
        return halves
    if any(entry.name.lower() in _HELD_OUT for entry in inner):
        raise BadData(
            "the data root has a TEST or VALIDATION folder and no TRAIN folder; test patients must not be trained on"
        )
    return inner


def _inner_class(walk: _Walk, name: str, outer: int | None) -> int | None:
    """The class of a folder inside one of class `outer`."""
    index = walk.index_of.get(class_key(name))
    if index is None:
        return outer
    walk.found.add(index)
    return index if outer in (None, index) else _TWO


def _take(walk: _Walk, entry: os.DirEntry[str], index: int | None, tables: tuple[PatientTable, ...]) -> None:
    path = Path(entry.path)
    if index is None:
        # lists and licences lie beside the class folders in every published archive
        if path.suffix.lower() in _PICTURES:
            walk.refuse(path, OTHER_CLASS)
    elif index == _TWO:
        walk.refuse(path, TWO_CLASSES)
    elif not disk.is_file(entry):
        walk.refuse(path, NOT_A_FILE)
    elif (person := patients.identify(path, tables)) is None:
        walk.refuse(path, NO_PATIENT)
    else:
        patient = walk.texts.setdefault(spelling(person.patient), person.patient)
        walk.written.setdefault(patient, set()).add(person.patient)
        walk.tiles.append(Tile(index, path, patient, person.hospital))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name. Raises `BadData` when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError as error:
        raise BadData("the data root does not exist; mount it or correct the site's configuration") from error
    except NotADirectoryError as error:
        raise BadData("the data root is not a folder; correct the site's configuration") from error


def _check_role(mark: Manifest) -> None:
    if mark.role != "train":
        raise BadData(f"the data root is or holds the {mark.role} part of a split; its patients must not be trained on")


def _check_nobody_held_out(written: Mapping[str, set[str]], marks: Sequence[Manifest]) -> None:
    for mark in marks:
        count = sum(any(map(mark.holds_out, texts)) for texts in written.values())
        if count:
            people = "1 patient" if count == 1 else f"{count} patients"
            raise HeldOutPatients(
                f"the data root has tiles of {people} whom its split holds out for validation or test; remove them"
            )


def _check_halves(tileset: TileSet, held_out: set[str]) -> None:
    if count := len(tileset.patients() & held_out):
        people = "1 patient is" if count == 1 else f"{count} patients are"
        raise HeldOutPatients(
            f"{people} in the training part and in a test or validation part of the data root; "
            "give each patient one part, for example with `histofed data split`"
        )


def _check_found(missing: Sequence[str]) -> None:
    if missing:
        raise BadData(
            f"the data root has no folder for class {', '.join(missing)}; it needs "
            f"{' and '.join(f'one named {folders_for(name)}' for name in missing)} (capitals do not matter)"
        )
