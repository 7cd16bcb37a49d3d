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


NEVER_STRUCK = {
    "histofed/base/durable.py::fsync_directory": "its callers have the failpoint",
    "histofed/base/durable.py::make_directory": "an empty folder means nothing, and one that is there is made use of",
    "histofed/base/durable.py::_temporary": "means nothing and is swept until it is renamed, where the failpoints are",
    "histofed/base/durable.py::_remove_abandoned": "where a power cut brings it back it is swept again",
    "histofed/base/durable.py::AppendLog.__init__": "a torn line is cut again by the next start",
    "histofed/base/durable.py::lock": "the file means nothing, its lock is the kernel's",
    "histofed/transport/part.py::PartFile.__init__": "an empty part is a beginning; `_recover` has the failpoint",
    "histofed/transport/part.py::PartFile._take_back": "bytes that nobody was told of; the next start takes them up",
    "histofed/transport/sums.py::Sums.remove": "advice: where it is missing nothing is compared",
    "histofed/transport/sums.py::Sums._append": "advice, as above; a torn line is not read",
    "histofed/transport/receiving.py::Writer.finish": "a receipt without its blob counts nothing; `adopt` follows",
    "histofed/transport/store.py::BlobStore.settle": "changes nothing; a kill here is one before the answer",
    "histofed/transport/store.py::BlobStore.import_file": "the temporary copy after an error",
    "histofed/transport/store.py::_hash_and_sync": "changes nothing; `durable.adopt` follows",
    "histofed/backup/archive.py::write": "bytes without a name; `durable.writing` has the failpoints",
    "histofed/backup/snapshot.py::link": "in the room of a snapshot, which the next backup clears away",
    "histofed/tiles/split.py::_link": "a folder that somebody prepares by hand, never state",
    "agent/rooms.py::Rooms.training": "a mark that stays counts a life too many",
}
"""Functions that sync, rename, remove or create files without a failpoint, each with its reason."""


def functions(path: Path) -> Iterator[tuple[str, list[ast.Call]]]:
    """Every function with the calls in it, those of functions inside it left to these."""

    def inside(node: ast.AST, outer: str) -> Iterator[tuple[str, list[ast.Call]]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                known = f"{outer}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    yield known, list(own_calls(child))
                yield from inside(child, f"{known}.")
            else:
                yield from inside(child, outer)

    yield from inside(ast.parse(path.read_text()), "")


def own_calls(node: ast.AST) -> Iterator[ast.Call]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from own_calls(child)


def changes_the_disk(call: ast.Call) -> bool:
    written = ast.unparse(call.func)
    module, _, last = written.rpartition(".")
    if module == "os":
        creates = last == "open" and "O_CREAT" in ast.unparse(call)
        syncs = last in {"fsync", "fdatasync", "ftruncate", "truncate"}
        return creates or syncs or last in {"rename", "replace", "link", "symlink", "unlink", "remove", "rmdir"}
    if last in {"fsync_directory", "rmtree"}:
        return True
    # `str.replace` takes two, `datetime.replace` names them
    path_replace = last == "replace" and len(call.args) == 1
    return module not in {"", "durable"} and (
        path_replace or last in {"rename", "unlink", "rmdir", "touch", "hardlink_to", "symlink_to", "truncate"}
    )


def test_whoever_changes_the_disk_can_be_struck_there_or_need_not_be() -> None:
    without = {
        f"{name(path)}::{function}"
        for path in sources()
        for function, found in functions(path)
        if any(map(changes_the_disk, found)) and not any(ast.unparse(call.func) == "failpoint" for call in found)
    }
    assert without == NEVER_STRUCK.keys()


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
