#!/usr/bin/env python3
"""Write man pages and completion from the parsers: deploy/man, deploy/completion (`make cli-papers`; `--check` compares).

They are kept in the repository, so that packages are built without importing what they pack, and a change of a command line
shows in a review. `tests/unit/test_cli_papers.py` fails when they are not current.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from packlib import commands, completion, manpages

from agent.cli import _parser as agent_parser
from aggregator.cli import _parser as aggregator_parser
from histofed.base import durable
from histofed.cli.main import build_parser as operator_parser

DEPLOY: Final = Path(__file__).parents[1] / "deploy"


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description="Write man pages and shell completion from the programs' parsers.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when one of them is not current")
    args = parser.parse_args()
    stale = [path for path, text in written().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if args.check:
        for path in stale:
            print(f"{path} is not what the parser says; run: make cli-papers", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(path, written()[path].encode(), mode=0o644)
    return 0


def written() -> Mapping[Path, str]:
    """Every file and its text."""
    found: dict[Path, str] = {}
    for parser, section in ((agent_parser(), "8"), (aggregator_parser(), "8"), (operator_parser(), "1")):
        command = commands.read(parser)
        found[DEPLOY / "man" / f"{command.name}.{section}"] = manpages.man_page(command, section)
        found[DEPLOY / "completion" / f"{command.name}.bash"] = completion.bash(command)
        found[DEPLOY / "completion" / f"_{command.name}"] = completion.zsh(command)
        found[DEPLOY / "completion" / f"{command.name}.fish"] = completion.fish(command)
    return found


if __name__ == "__main__":
    sys.exit(main())
