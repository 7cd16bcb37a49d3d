"""torchvision imports here, whichever build stands beside torch; each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_USE = """
from histofed.models.torchvision_compat import ensure_torchvision
first = ensure_torchvision()
assert ensure_torchvision() is first
import torchvision, timm
print("declared" if first else "not needed", torchvision.__version__, timm.__version__)
"""

_MISFIT = """
import torch
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
"""


def _run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_timm_imports_after_it() -> None:
    done = _run(_USE)
    assert done.returncode == 0, done.stderr


def test_a_build_that_does_not_fit_is_helped(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text(_MISFIT)
    done = _run(
        "from histofed.models.torchvision_compat import ensure_torchvision\nprint(bool(ensure_torchvision()))", tmp_path
    )
    assert done.stdout.strip() == "True", done.stderr


def test_another_fault_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('the disk is on fire')\n")
    done = _run("from histofed.models.torchvision_compat import ensure_torchvision\nensure_torchvision()", tmp_path)
    assert done.returncode == 1
    assert "the disk is on fire" in done.stderr
