"""A locked environment as a folder, for another machine's Python 3.11: installed offline, trimmed, compiled.

`histofed-agent`, `-aggregator` and `-tools` carry one each (`/opt/histofed/NAME`), made like a virtual environment; what
trainers need besides, torch above all, is a layer of its own (`/opt/histofed/torch`), which each of them imports where it
is installed (ADR 16). Bytecode is shipped, because the daemons may write nothing there, and is not compared with its
source when it is imported: the package manager replaces both together.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packlib import locks

PREFIX: Final = Path("/opt/histofed")
PYTHON: Final = "python3.11"
LAYER: Final = PREFIX / "torch"


@dataclass(frozen=True)
class Trim:
    """Files that no process of ours opens."""

    pattern: str
    """Below the folder of packages."""
    reason: str


TRIMS: Final = (
    Trim("bin", "command lines of libraries (torchrun, hf, tqdm); ours are written by `command`"),
    Trim("torch/test", "torch's own tests, compiled"),
    Trim("torch/bin/!torch_shm_manager", "test programs and protoc; torch_shm_manager serves DataLoader workers"),
    Trim("torch/include", "headers for compiling extensions; nothing is compiled at a site"),
    Trim("torch/share", "CMake files for the same"),
    Trim("torch/lib/*.a", "static libraries for the same"),
    Trim("torch/testing/_internal/py312_intrinsics.py", "a test in the syntax of Python 3.12"),
    Trim("numpy/**/tests", "numpy's tests"),
    Trim("sympy/**/tests", "sympy's tests"),
    Trim("networkx/**/tests", "networkx's tests"),
    Trim("greenlet/tests", "greenlet's tests"),
    Trim("numpy/_core/include", "headers"),
    Trim("**/*.pyi", "types for checkers"),
    Trim("**/*.pyx", "sources of compiled modules"),
    Trim("**/*.pxd", "headers of compiled modules"),
)


def make(target: Path, wheelhouse: Path, lock: str, *, minus: str | None = None) -> None:
    """Install the distributions of `requirements-LOCK.txt` into `target`, without those of the lock `minus`."""
    pins = locks.read(wheelhouse / f"requirements-{lock}.txt")
    if minus is not None:
        pins = locks.without(pins, locks.read(wheelhouse / f"requirements-{minus}.txt"))
    target.mkdir(parents=True)
    wanted = target.with_name("wanted.txt")
    wanted.write_text(locks.render(pins, "# offline"), encoding="utf-8")
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--find-links",
        wheelhouse,
        "--no-deps",
    ]
    exact: list[str | Path] = [
        "--require-hashes",
        "--no-compile",
        "--root-user-action",
        "ignore",
        "--target",
        target,
        "-r",
        wanted,
    ]
    # of one's own settings none may name another place to take wheels from
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    subprocess.run([*install, *exact], env={**environ, "PIP_CONFIG_FILE": os.devnull}, check=True)
    wanted.unlink()
    trim(target)


def trim(target: Path) -> None:
    """Remove what `TRIMS` says."""
    for each in TRIMS:
        for path in list(_matching(target, each.pattern)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _matching(target: Path, pattern: str) -> Iterator[Path]:
    """`folder/!name` is everything in the folder but `name`."""
    folder, negated, kept = pattern.partition("/!")
    if negated:
        yield from (path for path in target.glob(f"{folder}/*") if path.name != kept)
    else:
        yield from target.glob(pattern)


def compile_all(target: Path, root: Path) -> None:
    """Bytecode of every module, naming the paths of the machine on which `root` becomes `/`."""
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    subprocess.run([*command, str(target)], check=True)


def interpreter(folder: Path) -> None:
    """Make `folder` an environment of the distribution's own Python."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python3").symlink_to(f"/usr/bin/{PYTHON}")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n", encoding="utf-8")
    packages = site(folder)
    packages.mkdir(parents=True)


def site(folder: Path) -> Path:
    """Where an environment's packages are."""
    return folder / "lib" / PYTHON / "site-packages"


def see_layer(folder: Path) -> None:
    """Import torch's layer behind the environment's own packages; a path that does not exist is passed over."""
    (site(folder) / "histofed-torch.pth").write_text(f"{LAYER}\n", encoding="utf-8")


def command(folder: Path, name: str, module: str, at: Path) -> None:
    """One command line, for an environment that will lie at `at`; isolated from the caller's variables and folder."""
    script = folder / "bin" / name
    script.write_text(
        f"#!{at}/bin/python3 -I\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n", encoding="utf-8"
    )
    script.chmod(0o755)
