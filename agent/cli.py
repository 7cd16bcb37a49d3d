"""`histofed-agent`: what an administrator types. Errors are one sentence on stderr and the exit code of `base/errors.py`.

Imports are late, so that `--help` and `status` answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from histofed import __version__
from histofed.base.console import exit_code_of
from histofed.base.errors import HistofedError, UsageError
from histofed.base.owner import in_words, refuse_others

if TYPE_CHECKING:
    from agent.config import AgentConfig
    from histofed.base.config import Loaded
    from histofed.base.ids import Json

LINE_LIMIT: Final = 4096
"""Characters of a join line that are read."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code."""
    return exit_code_of("histofed-agent", lambda: _ran(argv))


def _ran(argv: Sequence[str] | None) -> int:
    options = _parser().parse_args(argv)
    try:
        with in_words():
            code: int = options.command(options)
    except HistofedError as error:
        from histofed.telemetry.logs import complain

        complain(f"histofed-agent: {error}")
        if getattr(options, "json", False):
            told = {"code": error.exit_code, "kind": type(error).__name__, "sentence": str(error)}
            sys.stdout.write(json.dumps({"error": told}, ensure_ascii=False) + "\n")
        return error.exit_code
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="histofed-agent",
        description="The agent of one hospital: trains locally on request, sends model updates only.",
        epilog="Exit codes: 0 done, 1 not connected (status) or something is wrong (doctor), 2 usage, 65 data, "
        "69 aggregator, 73 disk, 77 identity, 78 configuration, or another user's state.",
    )
    parser.add_argument("--version", action="version", version=f"histofed-agent {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _command(commands, "run", _run, "be the daemon, in the foreground; systemd starts this")
    enroll = _command(commands, "enroll", _enroll, "get this site's identity with a join line of the operator")
    enroll.add_argument(
        "--join-line-file", metavar="FILE", default="-", help="where the join line is; - is standard input (default)"
    )
    enroll.add_argument("--again", action="store_true", help="replace an identity that is still valid")
    _command(commands, "check", _check, "check the configuration and say where each value comes from")
    status = _command(
        commands,
        "status",
        _status,
        "say what the running agent does; exit code 0 when it is connected, 1 when not, "
        "65 when none ever ran here, or since a restore",
    )
    status.add_argument("--live", action="store_true", help="exit code 1 only when its loop has not turned for a minute")
    status.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    words = "say what is wrong and what to do; changes nothing; exit code 1 when something is wrong"
    doctor = _command(commands, "doctor", _doctor, words)
    doctor.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    words = "write the site's state into one file, also while the agent runs"
    backup = _command(commands, "backup", _backup, words)
    backup.description = (
        "Write the site's state into one file, also while the agent runs: private tensors, finished updates, what was seen "
        "of the aggregator, the audit journal. Tiles, configuration and consent file are not in it. FILE must not exist."
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="a new file, mode 0600; written whole or not at all")
    backup.add_argument("--check", action="store_true", help="prove an existing FILE instead: signature and every hash")
    backup.add_argument("--with-identity", action="store_true", help="also the site's key; then keep FILE like that key")
    restore = _command(commands, "restore", _restore, "make a backup the site's state")
    restore.description = (
        "Make a backup the site's state. The agent must be stopped. Every hash is proven before anything is replaced; a "
        "crash leaves the old state or the new one. What only grows is never lowered where the old state is still there."
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="a backup")
    restore.add_argument("--replace", action="store_true", help="move the present state aside, to before-restore-*/")
    restore.add_argument("--dry-run", action="store_true", help="prove FILE and say what would happen; writes nothing")
    return parser


def _command(commands: Any, name: str, function: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=words, description=words)
    command.add_argument("--config", type=Path, metavar="FILE", help="default: /etc/histofed/agent.toml, if it exists")
    command.add_argument("--state-dir", metavar="DIR", help="overrides state_dir")
    command.set_defaults(command=function)
    return command


def _run(options: argparse.Namespace) -> int:
    from histofed.telemetry.logs import configure

    loaded = _own(options, "run")
    configure(loaded.config.log_level)
    from agent.daemon import run

    return run(loaded, lambda: _load(options))


def _enroll(options: argparse.Namespace) -> int:
    from agent.config import proxy_setting
    from agent.enrolment import enroll
    from agent.layout import Layout
    from histofed.base.clock import SystemClock

    config = _own(options, "enroll").config
    text = _join_line(options.join_line_file)
    done = enroll(
        text, Layout(config.state_dir), config.aggregator, SystemClock(), again=options.again, proxy=proxy_setting(config)
    )
    sys.stdout.write(
        f"enrolled as {done.identity}, valid until {done.valid_until:%Y-%m-%d %H:%M} UTC; aggregator: {done.aggregator}\n"
    )
    return 0


def _join_line(source: str) -> str:
    """The first line of a file or of standard input. Raises `UsageError`."""
    if source == "-":
        if sys.stdin.isatty():
            print("paste the join line:", file=sys.stderr)
        return sys.stdin.readline(LINE_LIMIT)
    try:
        with Path(source).open(encoding="utf-8") as file:
            return file.readline(LINE_LIMIT)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the join line cannot be read from {source}; give --join-line-file a readable file") from error


def _check(options: argparse.Namespace) -> int:
    from agent.consent import load_policy
    from agent.premises import check_root
    from histofed.base.config import explain

    loaded = _load(options)
    settings = explain(loaded)
    width = max(len(f"{setting.key} = {setting.value}") for setting in settings)
    for setting in settings:
        sys.stdout.write(f"{f'{setting.key} = {setting.value}':<{width}}  # {setting.source}\n")
    check_root(loaded.config.data.root)
    if load_policy(loaded.config.consent).missing:
        sys.stdout.write(f"{loaded.config.consent} does not exist: nothing is allowed to run here\n")
    return 0


def _status(options: argparse.Namespace) -> int:
    from agent.layout import Layout
    from agent.status import read_status, turns
    from histofed.base.clock import SystemClock

    layout, clock = Layout(_load(options).config.state_dir), SystemClock()
    found = read_status(layout, clock)
    if options.json:
        sys.stdout.write(json.dumps(found.document(), ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in found.lines()))
    well = turns(layout, clock) if options.live else found.connected
    return 0 if well else 1


def _doctor(options: argparse.Namespace) -> int:
    from agent.doctor import checks
    from histofed.base.clock import SystemClock
    from histofed.base.doctor import diagnosis

    clock = SystemClock()
    found = diagnosis(lambda: checks(_load(options), clock))
    sys.stdout.write(found.render(as_json=options.json))
    return found.exit_code


def _backup(options: argparse.Namespace) -> int:
    from agent import backup
    from agent.layout import Layout
    from histofed.base.clock import SystemClock

    if options.check:
        manifest = backup.check(options.file)
    else:
        layout = Layout(_own(options, "backup ...").config.state_dir)
        manifest = backup.back_up(layout, options.file, SystemClock(), with_identity=options.with_identity)
    rounds = ", ".join(f"{name}/{number}" for name, number in sorted(manifest.rounds.items())) or "none"
    with_key = any(member.name == "identity/agent.pem" for member in manifest.members)
    sys.stdout.write(
        f"{options.file}: {manifest.holder} at {manifest.made_at[:19]} UTC; private tensors of rounds: {rounds}; "
        f"{len(manifest.members)} files, {manifest.total_bytes} bytes; CA SHA-256 {manifest.ca_sha256}\n"
        + ("it holds the site's key: keep it like that key\n" if with_key else "")
        + ("every byte is what was backed up, signed under that CA\n" if options.check else "")
    )
    return 0


def _restore(options: argparse.Namespace) -> int:
    from agent import restore
    from agent.layout import Layout
    from histofed.base.clock import SystemClock

    layout = Layout((_load(options) if options.dry_run else _own(options, "restore ...")).config.state_dir)
    if options.dry_run:
        done = restore.dry_run(layout, options.file)
    else:
        done = restore.restore(layout, options.file, SystemClock(), replace=options.replace)
    sys.stdout.write("\n".join(restore.summary(done, dry=options.dry_run)) + "\n")
    return 0


def _load(options: argparse.Namespace) -> Loaded[AgentConfig]:
    from agent.config import load_config

    flags: dict[str, Json] = {"state_dir": options.state_dir}
    return load_config(options.config, flags)


def _own(options: argparse.Namespace, command: str) -> Loaded[AgentConfig]:
    """For a command that writes into the state. Raises `ConfigError` for root and `NotOurs` for another user's state."""
    loaded = _load(options)
    refuse_others(loaded.config.state_dir, f"histofed-agent {command}")
    return loaded
