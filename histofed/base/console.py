"""How a command ends that cannot go on printing, or is interrupted: an exit code and at most one sentence, no traceback.

A reader that is gone (`| head -1`) has what it wanted: 141, as for a program that SIGPIPE ends. Ctrl-C is 130. A standard
output that takes no more, a full disk as a rule, is the table's 73, and said so. The three programs' `main` are the callers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, TextIO, cast

from histofed.base.errors import CannotWriteState

INTERRUPTED: Final = 128 + signal.SIGINT
BROKEN_PIPE: Final = 128 + signal.SIGPIPE


class Unprintable(OSError):
    """Standard output takes no more, although its reader is there."""


def exit_code_of(program: str, command: Callable[[], int]) -> int:
    """Run the command of a program, and see to it that what it printed has arrived."""
    if not sys.stdout:  # whoever started it closed it (`>&-`): what is printed goes nowhere
        return command()
    out = cast(TextIO, _Printer(sys.stdout))
    try:
        with contextlib.redirect_stdout(out):
            try:
                return command()
            finally:
                out.flush()
    except BrokenPipeError:
        _discard_the_rest()
        return BROKEN_PIPE
    except Unprintable as error:
        _discard_the_rest()
        with contextlib.suppress(OSError):
            print(f"{program}: standard output cannot be written: {error}; make room, or print elsewhere", file=sys.stderr)
        return CannotWriteState.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


class _Printer:
    """Standard output, whose errors can be told from those of any other file."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        with _named():
            return self._out.write(text)

    def flush(self) -> None:
        with _named():
            self._out.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unprintable(error.strerror) from error


def _discard_the_rest() -> None:
    """Keep the interpreter from flushing again at exit what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
