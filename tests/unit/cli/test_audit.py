"""An auditor proves a journal without any daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from histofed.audit.history import CLAIMED, RESTORED, History, claimed, restored
from histofed.audit.journal import Journal
from histofed.audit.verify import Head
from histofed.base.clock import FakeClock
from histofed.cli.main import main
from tests.support.users import as_nobody, needs_root, open_tmp_path

tmp_path = open_tmp_path


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    written = Journal(tmp_path, FakeClock(), "test")
    for number in range(5):
        written.append("round.planned", subject={"round": f"demo/{number}"})
    written.close()
    return tmp_path


def proven(journal: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The document of a journal that is whole."""
    assert main(["--json", "audit", "verify", str(journal)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_whole_journal_is_proven_with_its_head(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "audit", "verify", str(journal)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["ok"]) == (5, True)
    assert main(["audit", "verify", str(journal), "--head", found["head"]]) == 0
    assert "5 records are proven" in capsys.readouterr().out


def test_without_a_head_the_words_say_what_would_not_show(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = proven(journal, capsys)["head"]
    assert main(["audit", "verify", str(journal)]) == 0
    assert "cut off at the end would not show" in capsys.readouterr().out
    assert main(["audit", "verify", str(journal), "--head", head]) == 0
    found = capsys.readouterr().out
    assert "would not show" not in found
    assert "the head that was noted, record 5, is among them" in found


def test_an_edited_line_is_found(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (segment,) = journal.glob("*.jsonl")
    segment.write_text(segment.read_text().replace("demo/2", "demo/7"))
    assert main(["audit", "verify", str(journal)]) == 65
    assert "not what was written" in capsys.readouterr().err
    assert main(["--json", "audit", "verify", str(journal)]) == 65
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["records"], found["error"]["code"]) == (False, 2, 65)
    assert found["head"].startswith("2:")


def test_a_segment_that_does_not_belong_is_named_without_a_line(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (journal / "000000000999.jsonl").touch()
    assert main(["audit", "verify", str(journal)]) == 65
    assert "(000000000999.jsonl); " in capsys.readouterr().err


def test_a_folder_that_is_no_journal_is_refused_with_the_one_that_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "verify", str(tmp_path)]) == 65
    assert "the folder `journal` inside the state folder" in capsys.readouterr().err
    Journal(tmp_path / "journal", FakeClock(), "test").close()
    (tmp_path / "tile.png").touch()
    assert main(["--json", "audit", "verify", str(tmp_path)]) == 65
    captured = capsys.readouterr()
    assert f"give {tmp_path / 'journal'}" in captured.err
    assert json.loads(captured.out)["ok"] is False


def test_a_journal_without_a_record_proves_nothing(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (segment,) = journal.glob("*.jsonl")
    segment.write_bytes(b"")
    assert main(["audit", "verify", str(journal)]) == 65
    assert "nothing is proven" in capsys.readouterr().err


def test_an_empty_segment_at_the_end_is_told(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (journal / "000000000006.jsonl").touch()
    assert main(["audit", "verify", str(journal)]) == 0
    assert "000000000006.jsonl holds no record" in capsys.readouterr().out
    assert proven(journal, capsys)["unfilled"] == "000000000006.jsonl"


def test_a_head_that_is_gone_is_found(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(journal), "--head", f"9:{'0' * 64}"]) == 65
    assert "cut off" in capsys.readouterr().err


def test_a_rewritten_journal_is_not_called_proven(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "audit", "verify", str(journal), "--head", f"3:{'0' * 64}"]) == 65
    captured = capsys.readouterr()
    assert "record 3 is another one than the head that was noted" in captured.err
    assert "no record is proven by this head" in captured.err
    found = json.loads(captured.out)
    assert (found["ok"], found["records"]) == (False, 0)


def test_a_state_that_was_put_back_by_hand_is_called_so_and_claims_are_told(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Journal(journal, FakeClock(), "test")
    subject = restored(
        epoch_from=1,
        epoch=2,
        backup="",
        made_at="2026-01-01T00:00:00.000000Z",
        backup_head=before.head,
        old_head=None,
        kept="",
    )
    before.append(RESTORED, subject=subject)
    before.append(RESTORED, subject={**subject, "made_at": "", "epoch_from": 2, "epoch": 3})
    before.append(CLAIMED, subject=claimed("north", History(1, Head(34, "a" * 64))))
    before.close()
    assert main(["audit", "verify", str(journal)]) == 0
    words = capsys.readouterr().out
    assert "record 6: put back by hand, without a backup, as it was at 2026-01-01T00:00:00, epoch 1 -> 2" in words
    assert "record 7: put back by hand, without a backup and without a journal, epoch 2 -> 3" in words
    assert "restored from a backup" not in words
    assert f"record 8: site north said that it saw 34:{'a' * 64} in epoch 1" in words
    assert proven(journal, capsys)["claims"] == [{"record": 8, "site": "north", "epoch": 1, "head": f"34:{'a' * 64}"}]
    assert main(["audit", "verify", str(journal), "--head", f"34:{'a' * 64}"]) == 65
    assert "or records were removed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "words"), [("5:59b4", "must be 64 hex digits"), ("59b4", "is not NUMBER:HASH"), ("nine", "is not NUMBER:HASH")]
)
def test_a_head_that_is_none_is_a_wrong_call(
    journal: Path, capsys: pytest.CaptureFixture[str], head: str, words: str
) -> None:
    assert main(["audit", "verify", str(journal), "--head", head]) == 2
    assert words in capsys.readouterr().err


@needs_root
def test_another_users_journal_is_told_with_its_owner(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["audit", "verify", str(journal)])  # what it imports late is imported
    capsys.readouterr()
    journal.chmod(0o700)
    with as_nobody():
        assert main(["--json", "audit", "verify", str(journal)]) == 78
    found = capsys.readouterr()
    assert json.loads(found.out)["error"]["kind"] == "NotOurs"
    assert f"{journal} belongs to root, and this command runs as nobody: as root, put `runuser -u root --`" in found.err
