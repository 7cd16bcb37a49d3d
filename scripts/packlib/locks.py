"""Lock files: every distribution of an environment, by name, version and SHA-256.

A lock is what pip reads with `--require-hashes`. It names no index, so that the same file holds with a mirror, a folder of
wheels or none of both. `scripts/lock.py` writes the ones of `deploy/lock`; `wheelhouse.py` derives from them those that lie
beside the wheels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LINE: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+) (?P<hashes>(?:--hash=sha256:[0-9a-f]{64} ?)+)\Z")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Pin:
    """One distribution."""

    name: str
    """As PEP 503 spells it."""
    version: str
    sha256: tuple[str, ...]

    def line(self) -> str:
        """As pip reads it."""
        return f"{self.name}=={self.version} " + " ".join(f"--hash=sha256:{each}" for each in self.sha256)


def canonical(name: str) -> str:
    """PEP 503's spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(path: Path) -> tuple[Pin, ...]:
    """The pins of a lock, in its order. Raises `ValueError` with file and line for what is not a pin."""
    pins = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.match(line)
        if found is None:
            raise ValueError(f"{path}:{number}: not `name==version --hash=sha256:...`: {line[:80]}; run scripts/lock.py")
        pins.append(Pin(canonical(found["name"]), found["version"], tuple(_HASH.findall(found["hashes"]))))
    return tuple(pins)


def render(pins: Iterable[Pin], heading: str) -> str:
    """A lock's text, sorted by name."""
    return f"{heading}\n" + "".join(f"{pin.line()}\n" for pin in sorted(pins, key=lambda pin: pin.name))


def without(pins: Iterable[Pin], others: Iterable[Pin]) -> tuple[Pin, ...]:
    """The pins whose names are in no pin of `others`."""
    names = {pin.name for pin in others}
    return tuple(pin for pin in pins if pin.name not in names)
