"""What `histofed data check` found, as text and as a JSON document. Both name patients and stay in the hospital."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from histofed.base.ids import Json
from histofed.cli.tables import fields, table

SHOWN: Final = 20
"""Unusable files, groups of copies, and tiles of each, that are named in words; the document names them all."""

if TYPE_CHECKING:
    from histofed.tiles.survey import Seen, Survey
    from histofed.tiles.tileset import Tile


def survey_text(found: Survey, page: Path | None) -> str:
    """Tables, then the verdict."""
    blocks = [
        table(("CLASS", "TILES", "PATIENTS", "HOSPITALS"), [_class_row(found, k) for k in range(len(found.classes))]),
        table(
            ("HOSPITAL", "PATIENTS", *found.classes),
            [
                (hospital or "unknown", str(len({one.tile.patient for one in seen})), *map(str, _by_class(found, seen)))
                for hospital, seen in found.by_hospital().items()
            ],
        ),
        table(
            ("PATIENT", "HOSPITAL", *found.classes),
            [
                (patient, seen[0].tile.hospital or "unknown", *map(str, _by_class(found, seen)))
                for patient, seen in found.by_patient().items()
            ],
        ),
        table(
            ("", "LEAST", "5 %", "MEDIAN", "95 %", "MOST"),
            [(name, *(f"{value:.3g}" for value in values)) for name, values in found.quantities().items() if values],
        ),
        fields([("size " + size, f"{count} tiles") for size, count in _sizes(found).items()] or [("size", "-")]),
    ]
    if found.unusable:
        blocks.append(_unusable(found))
    if found.crossing():
        blocks.append(_crossing(found))
    verdict = [f"cannot be trained on: {line}" for line in found.problems()] + [
        f"look at: {line}" for line in (*found.advice(), *found.warnings())
    ]
    blocks.append("\n".join(verdict) or "nothing to complain about")
    if page is not None:
        blocks.append(f"the page with pictures is {page}")
    elif found.warnings():
        blocks.append("--page FILE.html shows these tiles, and --json names all their files")
    return "\n\n".join(blocks)


def survey_document(found: Survey, directory: Path) -> dict[str, Json]:
    """Everything, with files as `Survey.place` tells them."""

    def names(groups: Sequence[Sequence[Tile]]) -> list[Json]:
        return [[found.place(tile.path) for tile in group] for group in groups]

    def files(seen: Sequence[Seen]) -> list[Json]:
        return [found.place(one.tile.path) for one in seen]

    return {
        "stays_in_hospital": True,
        "directory": str(directory),
        "tiles": len(found.seen),
        "classes": [
            dict(zip(("class", "tiles", "patients", "hospitals"), _class_counts(found, k), strict=True))
            for k in range(len(found.classes))
        ],
        "hospitals": [
            {
                "hospital": hospital,
                "patients": len({one.tile.patient for one in seen}),
                "tiles": dict(zip(found.classes, _by_class(found, seen), strict=True)),
                "quantities": _quantities(found, seen),
            }
            for hospital, seen in found.by_hospital().items()
        ],
        "patients": [
            {
                "patient": patient,
                "hospital": seen[0].tile.hospital,
                "tiles": dict(zip(found.classes, _by_class(found, seen), strict=True)),
            }
            for patient, seen in found.by_patient().items()
        ],
        "sizes": dict(_sizes(found)),
        "quantities": _quantities(found, found.seen),
        "exact_copies": names(found.exact),
        "near_copies": names(found.near),
        "blurred": files(found.blurred()),
        "mostly_glass": files(found.mostly_glass()),
        "unusable": dict(found.refused),
        "unusable_files": [{"file": found.place(one.path), "reason": one.reason} for one in found.unusable],
        "patients_on_both_sides": list(found.leaking),
        "problems": list(found.problems()),
        "warnings": [*found.advice(), *found.warnings()],
    }


def _unusable(found: Survey) -> str:
    """The first files that cannot be used, and how many more there are."""
    rows = [(found.place(one.path), one.reason) for one in found.unusable[:SHOWN]]
    more = len(found.unusable) - SHOWN
    return table(("CANNOT BE USED", "BECAUSE"), rows) + (f"\nand {more} more" if more > 0 else "")


def _crossing(found: Survey) -> str:
    """The first files of the first groups of copies across patients or classes, and how many more there are."""
    crossing = found.crossing()
    rows = [
        (str(number), found.place(tile.path), tile.patient, found.classes[tile.class_index])
        for number, group in enumerate(crossing[:SHOWN], 1)
        for tile in group[:SHOWN]
    ]
    lines = [
        f"and {len(group) - SHOWN} tiles more in group {number}"
        for number, group in enumerate(crossing[:SHOWN], 1)
        if len(group) > SHOWN
    ]
    if len(crossing) > SHOWN:
        lines.append(f"and {len(crossing) - SHOWN} groups more")
    return "\n".join((table(("GROUP", "THE SAME PICTURE", "PATIENT", "CLASS"), rows), *lines))


def _quantities(found: Survey, seen: Sequence[Seen]) -> dict[str, Json]:
    names = ("least", "p5", "median", "p95", "most")
    return {name: dict(zip(names, values, strict=False)) for name, values in found.quantities(seen).items()}


def _class_counts(found: Survey, index: int) -> tuple[str, int, int, int]:
    mine = [seen.tile for seen in found.seen if seen.tile.class_index == index]
    return found.classes[index], len(mine), len({t.patient for t in mine}), len({t.hospital for t in mine})


def _class_row(found: Survey, index: int) -> tuple[str, ...]:
    return tuple(map(str, _class_counts(found, index)))


def _by_class(found: Survey, seen: Sequence[Seen]) -> list[int]:
    return [sum(one.tile.class_index == index for one in seen) for index in range(len(found.classes))]


def _sizes(found: Survey) -> dict[str, int]:
    sizes = sorted((seen.measures.width, seen.measures.height) for seen in found.seen)
    return {f"{width}x{height}": sizes.count((width, height)) for width, height in dict.fromkeys(sizes)}
