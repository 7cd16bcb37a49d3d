#!/usr/bin/env python3
"""What each preset costs, counted and not timed: writes docs/presets.md (`make presets-table`; `--check` compares).

The training step itself is run, at the preset's own batch, on tensors that have shapes and no contents (`FakeTensorMode`),
and every operation that it calls is metered: floating-point operations by torch's own formulas (2 per multiply-add; matrix
products, convolutions and attention), and the bytes of all tensors that are alive at once. No GPU, no weights file and no
tile is needed, and the result is the same on every machine with these versions of torch and timm.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from costlib.document import document, every

from histofed.base import durable

TARGET: Final = Path(__file__).parents[1] / "docs/presets.md"


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description="Count what each preset costs and write docs/presets.md (some minutes).")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the document is not current")
    args = parser.parse_args()
    text = document(every())
    if not args.check:
        durable.replace(TARGET, text.encode(), mode=0o644)
        return 0
    if TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET} is not what the presets cost; run: make presets-table", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
