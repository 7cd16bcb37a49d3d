"""An auditor proves a journal without any daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from histofed.audit.journal import Journal
from histofed.base.clock import FakeClock
from histofed.cli.main import main


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    written = Journal(tmp_path, FakeClock(), "test")
    for number in range(5):
        written.append("round.planned", subject={"round": f"demo/{number}"})
    written.close()
    return tmp_path


def test_a_whole_journal_is_proven_with_its_head(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "audit", "verify", str(journal)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["ok"]) == (5, True)
    assert main(["audit", "verify", str(journal), "--head", found["head"]]) == 0
    assert "5 records are proven" in capsys.readouterr().out


def test_an_edited_line_is_found(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (segment,) = journal.glob("*.jsonl")
    segment.write_text(segment.read_text().replace("demo/2", "demo/7"))
    assert main(["audit", "verify", str(journal)]) == 65
    assert "not what was written" in capsys.readouterr().err


def test_a_head_that_is_gone_is_found(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(journal), "--head", f"9:{'0' * 64}"]) == 65
    assert main(["audit", "verify", str(journal), "--head", "nine"]) == 65
    assert "is not N:HASH" in capsys.readouterr().err
