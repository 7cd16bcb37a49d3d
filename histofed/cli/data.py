"""`histofed data check` and `histofed data split`: what a hospital or a researcher does with tiles before any training."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histofed.base import durable
from histofed.base.errors import AlreadyThere, BadData, NotFound, UsageError
from histofed.base.ids import Json
from histofed.base.words import readable
from histofed.cli.command import Answer, Commands, Terminal, add_command, add_group, refuse_unwritable
from histofed.cli.survey_views import survey_document, survey_text
from histofed.cli.tables import table

if TYPE_CHECKING:
    from histofed.tiles.partition import Achieved, Homes
    from histofed.tiles.split import Part
    from histofed.tiles.tileset import TileSet

_METHODS = ("iid-tile", "iid-patient", "class-majority", "dirichlet", "hospital")
_TREE = (
    "DIR is a tree of any depth with one folder per class in it. A tile's patient is the TCGA barcode in its name or its "
    "line in patients.csv, a table with the columns file (path below the table's folder), patient and, if known, hospital."
)

SITES_MOST = 10_000
"""Far more than a federation has; a mistyped number would fill the memory."""


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Register the group."""
    group = add_group(commands, "data", "Check and split tiles before any training; runs where the tiles are.")
    _add_check(group, common)
    _add_split(group, common)


def _add_check(group: Commands, common: argparse.ArgumentParser) -> None:
    parser = add_command(
        group,
        "check",
        check,
        "Look at every tile under DIR: counts per class, patient and hospital, size, focus, tissue, stain, copies, unusable "
        "files. The answer names patients, and the page shows their tissue: both stay in the hospital. The exit code is 65 "
        f"when the data cannot be trained on. {_TREE}",
        common,
    )
    _add_directory(parser)
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="also write one page with pictures")


def _add_split(group: Commands, common: argparse.ArgumentParser) -> None:
    parser = add_command(
        group,
        "split",
        split,
        "Split the tiles under DIR over sites and set validation and test apart: links under OUT, marked so that held-out "
        "tiles cannot be trained on. Patients stay whole, except with iid-tile. What was achieved is reported. "
        f"{_TREE}",
        common,
    )
    _add_directory(parser)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--by", choices=_METHODS, help="how tiles go to sites; without it only --holdout is done")
    parser.add_argument("--sites", type=int, metavar="N", help="OUT/site-1 to OUT/site-N; hospital: one per hospital")
    parser.add_argument("--ratio", type=float, metavar="R", help="class-majority: share of the leading class, e.g. 0.9")
    parser.add_argument("--alpha", type=float, metavar="A", help="dirichlet: small is uneven, e.g. 0.5")
    parser.add_argument(
        "--holdout", type=_shares, metavar="V,T", help="shares of patients for validation and test, e.g. 0.1,0.2"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same split (default 0)")


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument(
        "--classes",
        type=_classes,
        metavar="A,B,...",
        help="class folders in the order of their index (default: MSIH,nonMSIH, else the outermost folders)",
    )


def _classes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as MSIH,nonMSIH: a name is empty")
    return names


def _shares(text: str) -> tuple[float, float]:
    validation, comma, test = text.partition(",")
    try:
        return float(validation), float(test) if comma else 0.0
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not two shares such as 0.1,0.2") from error


def check(args: argparse.Namespace, _: Terminal) -> Answer:
    """Survey. Raises `NotFound` without a folder, `BadData` for a tree that cannot be read; as `_check_page`."""
    from histofed.tiles.page import STAYS, render
    from histofed.tiles.survey import survey

    if args.page is not None:
        _check_page(args.page, args.directory)  # every tile is looked at first, which may take an hour
    _check_directory(args.directory)
    with _naming_places():
        found = survey(args.directory, args.classes)
    if args.page is not None:
        durable.replace(args.page, render(found, args.directory.resolve().name).encode())
    return Answer(
        survey_document(found, args.directory),
        survey_text(found, args.page),
        note=STAYS,
        exit_code=BadData.exit_code if found.problems() else 0,
    )


def split(args: argparse.Namespace, _: Terminal) -> Answer:
    """Scan, hold out, share out, link. Raises `UsageError`, `BadData`, `AlreadyThere`, `CannotWriteState`."""
    from histofed.tiles import split as splitting
    from histofed.tiles.folder import discover, list_all, scan
    from histofed.tiles.holdout import hold_out

    _check_flags(args)
    _check_directory(args.directory)
    with _naming_places():
        tileset = scan(args.directory, args.classes or discover(args.directory))
    parts: list[splitting.Part] = []
    training = tileset
    if args.holdout is not None:
        validation, test = args.holdout
        roles = hold_out(tileset, validation, test, args.seed)
        parts = splitting.held_out_parts(tileset, roles)
        training = splitting.only(tileset, roles, "train")
    names, homes, notes = _share_out(training, args)
    if left := len(list_all(args.directory, tileset.classes).tiles) - len(tileset.tiles):
        notes = [*notes, f"{left} tiles outside the training half of {args.directory} are in no part"]
    sites = [
        splitting.Part(name, "train", tuple(t for t, home in zip(training.tiles, homes, strict=True) if home == place))
        for place, name in enumerate(names)
    ]
    splitting.write_parts(args.directory, [*sites, *parts], args.out)
    return _split_answer(args, tileset, [*sites, *parts], notes)


def _check_directory(directory: Path) -> None:
    """What is said of a data root speaks of a site's configuration, and there is none here. Raises `NotFound`."""
    try:
        if directory.is_dir():
            return
        what = "is not a folder" if directory.exists() else "does not exist"
    except PermissionError:
        return  # the scan says it better
    raise NotFound(f"DIR {directory} {what}; name the folder in which the class folders lie")


@contextlib.contextmanager
def _naming_places() -> Iterator[None]:
    """What is said of a tree that cannot be read names no path, for it may leave a site; who types this may read which."""
    try:
        yield
    except BadData as error:
        from histofed.tiles.folder import Circle

        match error.__cause__:
            case Circle(link=link):
                words = f"the link {readable(str(link))} leads back to a folder above it; remove it"
            case PermissionError(filename=str(closed)):
                words = (
                    f"{readable(closed)} may not be read by this user ({os.geteuid()}); grant read access, or move it away"
                )
            case _:
                raise
        raise BadData(words) from error


def _check_page(page: Path, directory: Path) -> None:
    """It can be written and takes no other file's place. Raises `UsageError`, `AlreadyThere`, `BadData`, `NotOurs`."""
    from histofed.tiles.page import BEGINNING

    refuse_unwritable(page)
    if page.suffix.lower() != ".html":
        raise UsageError(f"--page {page} is not called .html, so it may be meant for something else; name it FILE.html")
    # where it lies as it is typed, and where links lead
    if any(Path(real(page.parent)).is_relative_to(real(directory)) for real in (os.path.abspath, os.path.realpath)):
        raise UsageError(f"--page {page} lies below DIR {directory}, among the tiles; name a file outside of it")
    if not page.exists():
        return
    beginning = BEGINNING.encode()
    if page.is_file():
        with page.open("rb") as file:
            if file.read(len(beginning)) == beginning:
                return
    raise AlreadyThere(f"{page} is there and is no page of `data check`; name a new file, or remove that one first")


def _check_flags(args: argparse.Namespace) -> None:
    """Every method gets what it needs and nothing else. Raises `UsageError`."""
    if args.by is None and args.holdout is None:
        raise UsageError("say how to split: --by METHOD for sites, --holdout V,T for validation and test, or both")
    if args.sites is not None and not 1 <= args.sites <= SITES_MOST:
        raise UsageError(f"--sites takes a number from 1 to {SITES_MOST}")
    for flag, method in (("ratio", "class-majority"), ("alpha", "dirichlet")):
        given = getattr(args, flag) is not None
        if given != (args.by == method):
            raise UsageError(f"--by {method} needs --{flag}" if not given else f"--{flag} belongs to --by {method}")
    if (args.sites is not None) != (args.by is not None) and args.by != "hospital":
        raise UsageError("--by and --sites belong together (only --by hospital may leave out --sites)")


def _share_out(tileset: TileSet, args: argparse.Namespace) -> tuple[tuple[str, ...], Homes, list[str]]:
    """The training folders' names, which tile goes to which, and what has to be said about it."""
    from histofed.tiles import partition

    match args.by:
        case None:
            return ("TRAIN",), (0,) * len(tileset.tiles), []
        case "iid-tile":
            homes = partition.iid_tile(tileset, args.sites, args.seed)
        case "iid-patient":
            homes = partition.iid_patient(tileset, args.sites, args.seed)
        case "class-majority":
            homes = partition.class_majority(tileset, args.sites, args.ratio, args.seed)
        case "dirichlet":
            homes = partition.dirichlet(tileset, args.sites, args.alpha, args.seed)
        case _:
            homes, groups = partition.hospitals(tileset, args.sites)
            sites = tuple(f"site-{place + 1}" for place in range(len(groups)))
            return sites, homes, [f"{site} is {', '.join(group)}" for site, group in zip(sites, groups, strict=True)]
    return tuple(f"site-{place + 1}" for place in range(args.sites)), homes, []


def _split_answer(args: argparse.Namespace, whole: TileSet, parts: Sequence[Part], notes: Sequence[str]) -> Answer:
    """What the folders really hold, beside what was asked for."""
    from histofed.tiles.partition import achieved

    place_of = {tile.path: place for place, part in enumerate(parts) for tile in part.tiles}
    found = achieved(whole, tuple(place_of[tile.path] for tile in whole.tiles), len(parts))
    warnings = _split_warnings(whole, parts, found)
    rows = [
        (
            part.folder,
            part.role,
            str(found.people[place]),
            *(str(count) for count in found.tiles[place]),
            f"{found.majority(place):.3f}",
        )
        for place, part in enumerate(parts)
    ]
    document: dict[str, Json] = {
        "directory": str(args.directory),
        "out": str(args.out),
        "asked": {name: getattr(args, name) for name in ("by", "sites", "ratio", "alpha", "holdout", "seed")},
        "parts": [
            {
                "folder": part.folder,
                "role": part.role,
                "patients": found.people[place],
                "tiles": dict(zip(whole.classes, found.tiles[place], strict=True)),
                "patients_by_class": dict(zip(whole.classes, found.patients[place], strict=True)),
                "majority": round(found.majority(place), 4),
            }
            for place, part in enumerate(parts)
        ],
        "shared_patients": found.shared_patients,
        "unusable": dict(whole.refused),
        "notes": list(notes),
        "warnings": warnings,
    }
    text = table(("FOLDER", "ROLE", "PATIENTS", *whole.classes, "LARGEST CLASS"), rows)
    return Answer(document, "\n".join([text, *notes]), note="\n".join(f"warning: {warning}" for warning in warnings))


def _split_warnings(whole: TileSet, parts: Sequence[Part], found: Achieved) -> list[str]:
    from histofed.tiles.survey import MINIMUM_PATIENTS

    warnings = list(whole.notes())
    if found.shared_patients:
        warnings.append(
            f"{found.shared_patients} patients have tiles at several sites: no hospitals are like that, and a score that is "
            "measured across these sites is too good; use iid-patient unless the paper's split is wanted"
        )
    for part, patients in zip(parts, found.patients, strict=True):
        cannot_train = f"; sites require at least {MINIMUM_PATIENTS} by default" if part.role == "train" else ""
        warnings += [
            f"{part.folder} has {'1 patient' if count else 'no patient'} of class {name}{cannot_train}"
            for name, count in zip(whole.classes, patients, strict=True)
            if count < (MINIMUM_PATIENTS if cannot_train else 1)
        ]
    return warnings
