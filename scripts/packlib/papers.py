"""Whose work is in a package, and under which terms: from the metadata that every distribution brings along."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Final

_CLASSIFIER: Final = "License :: OSI Approved :: "
_LONGEST: Final = 60
"""Characters above which `License` is a licence's text and not its name."""


@dataclass(frozen=True)
class Work:
    """One distribution of somebody else's."""

    name: str
    version: str
    license: str
    folder: str
    """Its `.dist-info`, where the licence's text is."""


def works(libraries: Path) -> tuple[Work, ...]:
    """Every distribution in a folder of packages, by name."""
    found = []
    for folder in sorted(libraries.glob("*.dist-info"), key=lambda path: path.name.lower()):
        metadata = HeaderParser().parsestr((folder / "METADATA").read_text(encoding="utf-8"))
        if metadata["Name"] != "histofed":
            found.append(Work(metadata["Name"], metadata["Version"], license_of(metadata), folder.name))
    return tuple(found)


def license_of(metadata: Message) -> str:
    """The licence as an SPDX expression where it is one, else in the words of its author."""
    if expression := metadata["License-Expression"]:
        return str(expression)
    named = str(metadata["License"] or "").strip()
    if named and len(named) <= _LONGEST and "\n" not in named:
        return named
    classified = [
        line.removeprefix(_CLASSIFIER) for line in metadata.get_all("Classifier", []) if line.startswith(_CLASSIFIER)
    ]
    return ", ".join(classified) or "see the text"


def copyright_of(ours: Path, libraries: Path, at: Path) -> str:
    """Debian's copyright file: our paragraph, then one per distribution, whose own files say who holds the rights."""
    text = ours.read_text(encoding="utf-8")
    for work in works(libraries):
        top = work.folder.removesuffix(".dist-info").partition("-")[0]
        text += (
            f"\nFiles: {str(at)[1:]}/{top}*\n"
            f"Copyright: the authors of {work.name}, named in the files below {at}/{work.folder}\n"
            f"License: {_short(work)}\n {work.license}; the full text is below {at}/{work.folder}\n"
        )
    return text


def _short(work: Work) -> str:
    return f"{work.name}-license"
