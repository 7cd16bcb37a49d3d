"""`histofed`: what the operator of a federation types, and a researcher who trains in one place.

Parses, calls one command, prints its answer, turns errors into exit codes.

With `--json` stdout carries one JSON document and nothing else (`rounds watch`: one per line). An error is always one
sentence on stderr and the exit code of its class (`histofed/base/errors.py`); with `--json` it is a document too.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from histofed import __version__
from histofed.base.console import Unprintable, exit_code_of
from histofed.base.errors import HistofedError, UsageError
from histofed.base.ids import Json
from histofed.base.owner import in_words
from histofed.base.words import readable
from histofed.cli import audit, data, experiments, models, presets, rounds, sites, status, tiles, token, train
from histofed.cli.command import Answer, Finished, Terminal, WithFacts, in_json, printable


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong call is an error of our table."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """All commands. `--config`, `--json` and `--traceback` are understood before and behind the command."""
    parser = _Parser(
        prog="histofed",
        description="Operate a federation (submit experiments, watch rounds, fetch signed models), or train in one place.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"histofed {__version__}")
    _add_common(parser, suppressed=False)
    common = argparse.ArgumentParser(add_help=False)
    _add_common(common, suppressed=True)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command", parser_class=_Parser)
    without_config = argparse.ArgumentParser(add_help=False)
    _add_common(without_config, suppressed=True, config=False)
    for group in (status, experiments, rounds, sites, models, token, tiles, data, presets, train, audit):
        group.add(commands, without_config if group is train else common)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, suppressed: bool, config: bool = True) -> None:
    """The global options; `suppressed` ones leave alone what stood before the command.

    `config` is left out where a command needs no aggregator and has a `--config` of its own.
    """
    default = argparse.SUPPRESS if suppressed else None
    options = parser.add_argument_group("everywhere")
    if config:
        options.add_argument("--config", type=Path, default=default, metavar="FILE", help="operator.toml to use")
    options.add_argument("--json", action="store_true", default=default or False, help="print one JSON document")
    options.add_argument(
        "--traceback", action="store_true", default=default or False, help="show where an internal error arose"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return exit_code_of("histofed", lambda: _run(arguments, Terminal(sys.stdout, sys.stderr)))


def _run(arguments: list[str], terminal: Terminal) -> int:
    try:
        options = build_parser().parse_args(arguments)
        _refuse_bytes(options)
        with in_words():
            answer: Answer | Finished = options.handler(options, terminal)
        return _tell(answer, options.json, terminal)
    except HistofedError as error:
        return _report(error, "--json" in arguments, terminal)
    except WithFacts as found:
        return _report(found.error, "--json" in arguments, terminal, found.facts)
    except (BrokenPipeError, Unprintable):
        raise
    except Exception as error:
        if "--traceback" in arguments:
            traceback.print_exc(file=terminal.error)
        wrapped = HistofedError(
            f"internal error, {type(error).__name__}: {error}; run it again with --traceback and report what it shows"
        )
        return _report(wrapped, "--json" in arguments, terminal)


def _refuse_bytes(options: argparse.Namespace) -> None:
    """Python carries bytes that are not UTF-8 in any word. A path may have them; no message to the aggregator takes them."""
    for value in vars(options).values():
        if isinstance(value, str) and not _is_text(value):
            raise UsageError(f"{readable(value)} is not UTF-8 text; type it again, see `histofed --help`")


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tell(answer: Answer | Finished, as_json: bool, terminal: Terminal) -> int:
    if isinstance(answer, Finished):
        return answer.exit_code
    if as_json:
        print(in_json(answer.document, terminal.out), file=terminal.out)
        return answer.exit_code
    if answer.note:
        print(printable(answer.note, terminal.error), file=terminal.error)
    print(printable(answer.text, terminal.out), file=terminal.out)
    return answer.exit_code


def _report(error: HistofedError, as_json: bool, terminal: Terminal, facts: Mapping[str, Json] | None = None) -> int:
    sentence = str(error) or (type(error).__doc__ or "").splitlines()[0]
    print(f"histofed: {sentence}", file=terminal.error)
    if as_json:
        found: Mapping[str, Json] = {"code": error.exit_code, "kind": type(error).__name__, "sentence": sentence}
        print(in_json({"error": found, **(facts or {})}, terminal.out), file=terminal.out)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
