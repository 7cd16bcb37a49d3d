"""What a wheelhouse says of itself: `bundle.py` and `images.py` call what they make by the version that is in it."""

from __future__ import annotations

from pathlib import Path

from packlib import checksums, locks


def version(wheelhouse: Path) -> str:
    """histofed's version in a whole wheelhouse. Raises `FileNotFoundError` in words where there is none."""
    if not (wheelhouse / checksums.NAME).exists():
        raise FileNotFoundError(f"there is no wheelhouse in {wheelhouse}; make it with: make wheelhouse")
    return next(pin.version for pin in locks.read(wheelhouse / "requirements-tools.txt") if pin.name == "histofed")
