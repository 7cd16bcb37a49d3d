"""How a command ends that cannot go on printing, or is interrupted: an exit code and at most one sentence, no traceback.

A reader that is gone (`| head -1`) has what it wanted: 141, as for a program that SIGPIPE ends. Ctrl-C is 130. A standard
output that takes no more, a full disk as a rule, is the table's 73, and said so. A stream that is closed (`>&-`) changes
nothing but that nobody reads. The three programs' `main` are the callers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO, cast

from histofed.base.errors import CannotWriteState

INTERRUPTED: Final = 128 + signal.SIGINT
BROKEN_PIPE: Final = 128 + signal.SIGPIPE


class Unprintable(OSError):
    """Standard output takes no more, although its reader is there."""


def exit_code_of(program: str, command: Callable[[], int]) -> int:
    """Run the command of a program, and see to it that what it printed has arrived."""
    _open_what_is_closed()
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


def _open_what_is_closed() -> None:
    """Put `os.devnull` where a standard stream is closed.

    Python has None there, which is no file, and the next file that is opened would get the descriptor, and with it what
    children and libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115  # open as long as the program
            os.set_inheritable(nowhere.fileno(), True)
            setattr(sys, name, nowhere)


class _Printer:
    """Standard output, whose errors can be told from those of any other file."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._refusal: OSError | None = None

    def write(self, text: str) -> int:
        with self._named():
            return self._out.write(text)

    def flush(self) -> None:
        if self._refusal is not None:
            raise self._refusal  # once more: argparse passes over it when it prints its help
        with self._named():
            self._out.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            self._refusal = error
            raise
        except OSError as error:
            self._refusal = Unprintable(error.strerror)
            raise self._refusal from error


def _discard_the_rest() -> None:
    """Keep the interpreter from flushing again at exit what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
