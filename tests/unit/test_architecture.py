"""The arrows that import-linter cannot see (docs/architecture.md, "Rules that tests hold")."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("histofed", "agent", "aggregator")


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (path for path in sorted((ROOT / package).rglob("*.py")) if "v1" not in path.parts)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    """Every call in a file: its line, its dotted name as written, the node."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def opens_for_writing(written: str, call: ast.Call) -> bool:
    modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    modes += [word.value.value for word in call.keywords if word.arg == "mode" and isinstance(word.value, ast.Constant)]
    is_open = written in {"open", "io.open", "os.fdopen"} or written.endswith(".open")
    return is_open and any(re.fullmatch(r"[rbt+]*[wax+][rwaxbt+]*", mode) for mode in modes if isinstance(mode, str))


def test_only_durable_writes_files() -> None:
    writers = (".write_text", ".write_bytes", "os.replace", "shutil.move", "shutil.copy", "shutil.copyfile")
    allowed = {
        "histofed/base/durable.py",
        # anonymous files in memory, never on a disk
        "histofed/transport/tls.py",
        "histofed/telemetry/journald.py",
    }
    found = [
        f"{name(path)}:{line} {written}"
        for path in sources()
        if name(path) not in allowed
        for line, written, call in calls(path)
        if written.endswith(writers) or opens_for_writing(written, call)
    ]
    assert found == []


def test_only_the_clock_reads_time() -> None:
    readers = {
        "time.time",
        "time.monotonic",
        "time.perf_counter",
        "time.sleep",
        "datetime.now",
        "datetime.utcnow",
        "datetime.today",
    }
    found = [
        f"{name(path)}:{line} {written}"
        for path in sources()
        if name(path) != "histofed/base/clock.py"
        for line, written, _ in calls(path)
        if written in readers or written.removeprefix("datetime.") in readers
    ]
    assert found == []


def loads_weights_only(word: ast.keyword) -> bool:
    return word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True


def test_nothing_loads_pickles() -> None:
    found = [
        f"{name(path)}:{line} {written}"
        for path in sources()
        for line, written, call in calls(path)
        if (written == "torch.load" and not any(loads_weights_only(word) for word in call.keywords))
        or written.startswith("pickle.")
    ]
    assert found == []


def test_only_daemons_and_command_lines_construct_journals_and_stores() -> None:
    owners = {"aggregator/daemon.py", "aggregator/setup.py", "agent/daemon.py", "agent/cli.py", "agent/enrolment.py"}
    # for commands that hold the daemon's lock while they write
    owners.add("histofed/backup/journals.py")
    found = [
        f"{name(path)}:{line} {written}"
        for path in sources()
        if name(path) not in owners
        for line, written, _ in calls(path)
        if written in {"Journal", "Store", "Past", "BlobStore", "Engine", "Workers"}
    ]
    assert found == []


def test_every_failpoint_is_used_and_every_use_is_known() -> None:
    from histofed.base.failpoints import FAILPOINTS

    used = {
        call.args[0].value
        for path in sources()
        for _, written, call in calls(path)
        if written.rpartition(".")[2] == "failpoint" and call.args and isinstance(call.args[0], ast.Constant)
    }
    assert used == set(FAILPOINTS)


def test_no_message_has_a_field_for_a_path_or_a_patient() -> None:
    fields = [
        f"{path.name}: {match}"
        for path in sorted((ROOT / "proto").rglob("*.proto"))
        for match in re.findall(
            r"^\s+(?:(?:repeated|optional) )?[\w.<>, ]+ (\w*(?:path|file|dir|patient|slide|tile)\w*) = \d+;",
            path.read_text(),
            re.MULTILINE,
        )
    ]
    assert fields == []


@pytest.mark.parametrize("module", ["aggregator.daemon", "agent.daemon", "histofed.cli.status", "histofed.cli.main"])
def test_daemons_and_operator_commands_never_import_the_numeric_half(module: str) -> None:
    heavy = "torch torchvision timm flwr sklearn matplotlib histofed.tiles"
    program = f"import sys, {module}; print([name for name in {heavy.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_generated_code_is_what_the_protocol_says() -> None:
    done = subprocess.run(
        ["scripts/proto.sh", "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
