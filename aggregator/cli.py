"""`histofed-aggregator`: make a federation, run it, look at its configuration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from histofed import __version__
from histofed.base.clock import SystemClock
from histofed.base.console import exit_code_of
from histofed.base.errors import HistofedError, UsageError
from histofed.base.owner import in_words, refuse_others

if TYPE_CHECKING:
    from aggregator.config import AggregatorConfig
    from histofed.base.config import Loaded

EXIT_CODES: Final = (
    "Exit codes: 0 done, 2 usage, 65 the file is damaged or of another federation, or something is in the way, 73 disk, "
    "75 try again in a moment, 77 no federation or a false signature, 78 configuration, version, or another user's state."
)
KEEP_SAFE: Final = "it holds the CA's key: keep it like that key, and encrypt it before it leaves this machine"
PROVEN: Final = "every byte is what was backed up, signed under that CA"
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DEFAULT_CONFIG: Final = Path("/etc/histofed/aggregator.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code of the one table (`histofed/base/errors.py`)."""
    return exit_code_of("histofed-aggregator", lambda: _ran(arguments))


def _ran(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        with in_words():
            code: int = options.run(options)
    except HistofedError as error:
        from histofed.telemetry.logs import complain

        complain(f"histofed-aggregator: {error}")
        return error.exit_code
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="histofed-aggregator",
        description="The centre of a federation: samples sites, averages their updates, keeps the journal.",
    )
    parser.add_argument("--version", action="version", version=f"histofed-aggregator {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make the federation's CA, the aggregator's certificate and a first operator")
    init.add_argument("--operator", default="admin", metavar="NAME", help="the first operator's name (default: admin)")
    init.add_argument(
        "--operator-dir", type=Path, metavar="DIR", help="where the operator's files go (default: STATE/operator)"
    )
    init.set_defaults(run=_init)

    operator = commands.add_parser("operator", help="issue a certificate to an operator, also while the daemon runs")
    operator.add_argument("name", metavar="NAME")
    operator.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder for operator.toml, certificate and key"
    )
    operator.set_defaults(run=_operator)

    first = commands.add_parser(
        "first",
        help="give an experiment its first weights",
        description="Give an experiment its first weights, before it is submitted: then this machine needs no torch. "
        "`histofed experiments draw` makes the file. Its bytes depend on the machine that draws (another processor or torch "
        "may round otherwise), so compare the SHA-256 that both commands print.",
    )
    first.add_argument("name", metavar="NAME", help="the experiment's")
    first.add_argument("file", type=Path, metavar="FILE", help="safetensors; it is copied")
    first.set_defaults(run=_first)

    run = commands.add_parser("run", help="run the daemon")
    run.set_defaults(run=_run)

    check = commands.add_parser("check", help="print each effective setting and where it comes from")
    check.set_defaults(run=_check)

    words = "say what is wrong and what to do; changes nothing; exit code 1 when something is wrong"
    doctor = commands.add_parser("doctor", help=words, description=words)
    doctor.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    doctor.set_defaults(run=_doctor)

    for command in (init, operator, first, run, check, doctor, *_add_backup(commands)):
        command.add_argument("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}")
    return parser


def _add_backup(commands: Commands) -> tuple[argparse.ArgumentParser, ...]:
    words = "write the whole state into one file, also while the daemon runs"
    backup = commands.add_parser(
        "backup",
        help=words,
        description=f"{words[0].upper()}{words[1:]}: database, model and update files, audit journal, CA. FILE must not "
        "exist. It holds the CA's key: keep it like that key, and encrypt it before it leaves this machine.",
        epilog=EXIT_CODES,
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="a new file, mode 0600; written whole or not at all")
    backup.add_argument("--check", action="store_true", help="prove an existing FILE instead: signature and every hash")
    backup.set_defaults(run=_backup)

    words = "make a backup the state, in the next epoch, so that sites notice and follow"
    restore = commands.add_parser(
        "restore",
        help=words,
        description=f"{words[0].upper()}{words[1:]}. The daemon must be stopped. Every hash is proven before anything is "
        "replaced; a crash leaves the old state or the new one. Unused join tokens become void, open rounds get their whole "
        "time again, and the audit journal says what happened.",
        epilog=EXIT_CODES,
    )
    restore.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a backup")
    restore.add_argument("--replace", action="store_true", help="move the present state aside, to before-restore-*/")
    restore.add_argument("--dry-run", action="store_true", help="prove FILE and say what would happen; writes nothing")
    restore.add_argument(
        "--in-place",
        action="store_true",
        help="no FILE: the state directory itself was put back by hand (a copy, a snapshot); make it a restored one",
    )
    restore.add_argument("--epoch", type=int, metavar="N", help="begin this epoch, where sites have seen a later one")
    restore.set_defaults(run=_restore)
    return backup, restore


def _backup(options: argparse.Namespace) -> int:
    from aggregator import backup

    if options.check:
        manifest = backup.check(options.file)
    else:
        manifest = backup.back_up(_own(options, "backup ...").config, options.file, SystemClock())
    sys.stdout.write(
        f"{options.file}: {manifest.federation} at {manifest.made_at[:19]} UTC, epoch {manifest.epoch}, newest committed: "
        f"{manifest.newest_committed}; {len(manifest.members)} files, {manifest.total_bytes} bytes; "
        f"CA SHA-256 {manifest.ca_sha256}\n"
        f"{PROVEN if options.check else KEEP_SAFE}\n"
    )
    return 0


def _restore(options: argparse.Namespace) -> int:
    from aggregator import restore

    if options.in_place == (options.file is not None) or (options.in_place and (options.dry_run or options.replace)):
        raise UsageError("name a FILE, or --in-place alone for a state directory that was put back by hand")
    config, clock = (_load(options) if options.dry_run else _own(options, "restore ...")).config, SystemClock()
    if options.in_place:
        done = restore.in_place(config, clock, epoch=options.epoch)
    elif options.dry_run:
        done = restore.dry_run(config, options.file, epoch=options.epoch)
    else:
        done = restore.restore(config, options.file, clock, replace=options.replace, epoch=options.epoch)
    sys.stdout.write("\n".join(restore.summary(done, dry=options.dry_run)) + "\n")
    return 0


def _load(options: argparse.Namespace) -> Loaded[AggregatorConfig]:
    from aggregator.config import AggregatorConfig
    from histofed.base.config import load

    path = options.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    return load(AggregatorConfig, name="aggregator", path=path, flags={})


def _own(options: argparse.Namespace, command: str) -> Loaded[AggregatorConfig]:
    """For a command that writes into the state. Raises `ConfigError` for root and `NotOurs` for another user's state."""
    loaded = _load(options)
    refuse_others(loaded.config.state_dir, f"histofed-aggregator {command}")
    return loaded


def _init(options: argparse.Namespace) -> int:
    from aggregator import setup

    config = _own(options, "init").config
    folder = options.operator_dir or config.state_dir / "operator"
    identity, issued = setup.create(config, SystemClock(), options.operator, folder)
    sys.stdout.write(
        f"federation {config.federation}: CA SHA-256 {identity.authority.sha256}\n"
        f"operator {options.operator}: {folder / 'operator.toml'}, valid until {issued.not_after:%Y-%m-%d} "
        "(copy the folder to the operator's machine)\n"
        "next: histofed-aggregator run\n"
    )
    return 0


def _operator(options: argparse.Namespace) -> int:
    from aggregator import setup

    config, clock = _own(options, f"operator {options.name} --out DIR").config, SystemClock()
    issued = setup.write_operator(options.out, options.name, config, setup.load_authority(config, clock), clock)
    sys.stdout.write(f"operator {options.name}: {options.out / 'operator.toml'}, valid until {issued.not_after:%Y-%m-%d}\n")
    return 0


def _first(options: argparse.Namespace) -> int:
    from aggregator import setup

    digest = setup.give_first(_own(options, "first ...").config, options.name, options.file)
    sys.stdout.write(f"experiment {options.name} will begin with {digest}; next: histofed experiments submit\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    from aggregator.daemon import AggregatorService
    from histofed.base.daemon import Daemon
    from histofed.telemetry.logs import configure

    loaded = _own(options, "run")
    configure(loaded.config.log_level)
    service = AggregatorService(loaded, lambda: _load(options), SystemClock())
    return Daemon("histofed-aggregator", service).main()


def _check(options: argparse.Namespace) -> int:
    from histofed.base.config import explain

    for setting in explain(_load(options)):
        sys.stdout.write(f"{setting.key} = {setting.value}    ({setting.source})\n")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from aggregator.doctor import checks
    from histofed.base.doctor import diagnosis

    clock = SystemClock()
    findings = diagnosis(lambda: checks(_load(options), clock))
    sys.stdout.write(findings.render(as_json=options.json))
    return findings.exit_code
