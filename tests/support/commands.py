"""Command lines inside the test's own process: the same `main` as the console script, without a second of start-up."""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    error: str


def run_here(module: str, *arguments: str) -> Done:
    """`MODULE.main(arguments)` with its streams captured. Not from inside an event loop."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            code = importlib.import_module(module).main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Done(code or 0, out.getvalue(), error.getvalue())
