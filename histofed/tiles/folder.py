"""From a folder of tiles to a `TileSet`, by names alone: `[TRAIN|TEST/]CLASS/TILE`.

Both published layouts are taken unchanged, in any case: TCGA-CRC-DX (`TRAIN|TEST` / `MSIH|nonMSIH`) and its sister
(`MSIMUT|MSS`). Where a TRAIN folder exists only it is read: its patients are disjoint from TEST's, and the generator must
never see those. The index of a class is its place in the experiment's list, never the alphabet's choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from histofed.base.errors import BadData
from histofed.tiles import barcode
from histofed.tiles.tileset import Tile, TileSet, check_classes

_ALIASES: Final = {"msimut": "msih", "mss": "nonmsih"}
"""Two names of one class, lower case."""

NO_PATIENT: Final = "no patient id in the name"
NESTED: Final = "not a plain file inside a class folder"
OTHER_CLASS: Final = "in a folder that is no class of this experiment"


def class_key(name: str) -> str:
    """What two names of the same class have in common."""
    return _ALIASES.get(name.lower(), name.lower())


def scan(root: Path, classes: Sequence[str]) -> TileSet:
    """List the tiles under `root`; no file is opened. The first class of the list has index 0.

    Raises `BadData` when the root or a class's folder is missing, or a class has no tile.
    """
    index_of = {class_key(name): index for index, name in enumerate(classes)}
    if len(index_of) != len(classes):
        raise BadData(f"classes {', '.join(classes)} name one class twice (MSIMUT is MSIH, MSS is nonMSIH)")
    top = _training_half(root)
    tiles, refused, found = [], Counter[str](), set()
    for folder in _entries(top):
        if not folder.is_dir() or folder.name.startswith("."):
            continue  # lists and licences lie beside the class folders in every published archive
        index = index_of.get(class_key(folder.name))
        if index is None:
            refused[OTHER_CLASS] += sum(1 for _ in folder.iterdir())
            continue
        found.add(index)
        for path in _entries(folder):
            name = barcode.parse(path.name)
            if not path.is_file():
                refused[NESTED] += 1
            elif name is None:
                refused[NO_PATIENT] += 1
            else:
                tiles.append(Tile(index, path, name.patient))
    _check_found(found, classes)
    # + drops the reasons that nothing was refused for
    tileset = TileSet(tuple(classes), tuple(sorted(tiles)), dict(+refused))
    check_classes(tileset)
    return tileset


def _training_half(root: Path) -> Path:
    """The TRAIN folder where there is one, else the root; a lone TEST folder is not for training."""
    halves = {entry.name.lower(): entry for entry in _entries(root) if entry.is_dir()}
    if "train" in halves:
        return halves["train"]
    if "test" in halves:
        raise BadData("the data root has a TEST folder and no TRAIN folder; test patients must not be trained on")
    return root


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name. Raises `BadData` when it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError as error:
        raise BadData("the data root does not exist; mount it or correct the site's configuration") from error
    except NotADirectoryError as error:
        raise BadData("the data root is not a folder; correct the site's configuration") from error
    except PermissionError as error:
        raise BadData("the data root may not be read by this user; grant the agent's user read access") from error


def _check_found(found: set[int], classes: Sequence[str]) -> None:
    missing = [name for index, name in enumerate(classes) if index not in found]
    if missing:
        raise BadData(
            f"the data root has no folder for class {', '.join(missing)}; "
            "it needs one folder per class of the experiment (MSIH or MSIMUT, nonMSIH or MSS)"
        )
