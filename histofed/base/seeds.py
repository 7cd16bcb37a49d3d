"""Seeds from meaning: (experiment, round, site) and nothing else, so that a repeated attempt is the same work."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from histofed.base.ids import ExperimentId, SiteId


def seed(purpose: str, *parts: str | int) -> int:
    """63 bits that depend on every part and its position; a part may hold any character."""
    hasher = hashlib.sha256(b"histofed.seed/v1")
    for part in (purpose, *parts):
        data = str(part).encode()
        hasher.update(len(data).to_bytes(4, "big") + data)
    return int.from_bytes(hasher.digest()[:8], "big") >> 1


def training_seed(experiment: ExperimentId, round_number: int, site: SiteId) -> int:
    """The seed of one task. The attempt is left out on purpose (docs/architecture.md, "The round")."""
    return seed("train", experiment, round_number, site)


def sample_sites(experiment: ExperimentId, round_number: int, eligible: Sequence[SiteId], count: int) -> tuple[SiteId, ...]:
    """`count` sites of the round, drawn without replacement, sorted; the order of `eligible` does not matter."""
    generator = random.Random(seed("sample", experiment, round_number))
    return tuple(sorted(generator.sample(sorted(eligible), min(count, len(eligible)))))
