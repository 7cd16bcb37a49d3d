"""The names of the encodings in which a site may send its update; `histofed/encodings` says what they mean.

They are part of an experiment file, of a signed manifest and of traces, so the names live where all of these can see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, get_args

Encoding: TypeAlias = Literal["float32", "bfloat16", "float32-delta", "bfloat16-delta"]
ENCODINGS: Final[tuple[Encoding, ...]] = get_args(Encoding)
EXACT: Final[frozenset[Encoding]] = frozenset({"float32", "float32-delta"})
"""Those from which the very bits of the trained tensors come back."""
STEPS: Final[Mapping[Encoding, Encoding]] = {
    "float32-delta": "float32-delta",
    "bfloat16": "float32-delta",
    "bfloat16-delta": "bfloat16-delta",
}
"""How the aggregator tells a new model to sites that hold the one before, by the encoding of updates; not at all in float32.
The mean of bfloat16 weights is not a bfloat16, so it is told exactly."""
CAPABILITIES: Final = tuple(f"encoding:{name}" for name in ENCODINGS)
"""As agent and aggregator tell each other."""
