"""Every command against a real aggregator port: mTLS, gate, wire, then words, documents and exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from histofed.audit.verify import Head
from histofed.cli.main import main
from tests.support.operator_service import HEAD, RunningAggregator
from tests.support.signed_models import Federation
from tests.unit.cli.conftest import Ran

Histofed = Callable[..., Ran]


def test_status(histofed: Histofed) -> None:
    found = histofed("status", "--json")
    assert found.document["sites_connected"] == 2
    assert str(Head.parse(found.document["journal_head"])) == HEAD, "as `audit verify --head` takes it"
    assert found.document["experiments"][0]["state"] == "running"
    assert found.error == ""

    words = histofed("status").out
    assert "2 connected of 3 enrolled" in words
    assert "up 1 min 05 s" in words
    assert "attention" in words
    assert "the disk is nearly full" in words
    assert f"7 records, head {HEAD}" in words


def test_rounds_list(histofed: Histofed) -> None:
    committed, still_open = histofed("rounds", "list", "--json").document["rounds"]

    assert committed["experiment"] == "demo"
    assert committed["round"] == 1
    assert committed["state"] == "committed"
    assert committed["sampled"] == ["north", "west"]
    assert committed["admitted"] == ["north"]
    assert committed["refused"] == [{"site": "west", "reason": "a tensor is not finite"}]
    assert committed["opened_at"] == "2026-01-01T12:00:00.000000Z"
    assert "tasks" not in committed
    assert still_open["state"] == "open"
    assert still_open["model_digest"] is None
    assert still_open["committed_at"] is None

    words = histofed("rounds", "list", "demo").out
    assert "west: a tensor is not finite" in words
    assert "1 min 05 s" in words


def test_rounds_show(histofed: Histofed) -> None:
    (task,) = histofed("rounds", "show", "demo", "1", "--json").document["round"]["tasks"]
    assert (task["site"], task["kind"], task["state"]) == ("north", "train", "admitted")

    assert "north  train  admitted" in histofed("rounds", "show", "demo", "1").out


def test_experiments(histofed: Histofed, tmp_path: Path, aggregator: RunningAggregator, config: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text('name = "demo"\nrecipe = "gan"\n', encoding="utf-8")

    assert histofed("experiments", "submit", str(file), "--json").document["experiment"]["state"] == "draft"
    again = histofed("experiments", "submit", str(file))
    assert f"histofed --config {config} rounds watch demo" in again.out
    assert not again.error
    assert aggregator.servicer.submitted == [file.read_text(encoding="utf-8")] * 2
    assert histofed("experiments", "list", "--json").document["experiments"][0]["name"] == "demo"
    assert histofed("experiments", "show", "demo", "--json").document["toml"] == 'name = "demo"\n'
    assert "1 of 2 committed" in histofed("experiments", "show", "demo").out


def test_an_experiments_comments_do_not_talk_to_the_terminal(histofed: Histofed, aggregator: RunningAggregator) -> None:
    aggregator.servicer.toml = 'name = "demo"  # \x9b2J \u202e\n[config]\n\tsteps = 1\n'

    assert histofed("experiments", "show", "demo").out.endswith(
        '\n\nname = "demo"  # \\x9b2J \\u202e\n[config]\n\tsteps = 1\n'
    )
    assert histofed("experiments", "show", "demo", "--json").document["toml"] == aggregator.servicer.toml


def test_a_site_that_is_not_enrolled_is_told_when_an_experiment_names_it(histofed: Histofed, tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text('name = "demo"\nrecipe = "gan"\n[sampling]\nsites = ["nroth", "west"]\n', encoding="utf-8")

    told = histofed("experiments", "submit", str(file))

    assert told.code == 0
    assert told.error == "histofed: not enrolled yet: nroth; is the name in [sampling] right?\n"
    assert histofed("experiments", "submit", str(file), "--json").document["not_enrolled"] == ["nroth"]


def test_an_experiment_that_ended_is_not_submitted_again(
    histofed: Histofed, tmp_path: Path, aggregator: RunningAggregator
) -> None:
    file = tmp_path / "demo.toml"
    file.write_text('name = "demo"\nrecipe = "gan"\n', encoding="utf-8")
    aggregator.servicer.state = "CANCELLED"

    refused = histofed("experiments", "submit", str(file))

    assert (refused.code, refused.out) == (65, "")
    assert "experiment demo was submitted before and is cancelled: nothing begins" in refused.error


@pytest.mark.parametrize("part", ["operator.key", "operator.crt", "ca.crt", "damaged"])
def test_a_folder_whose_parts_are_of_several_identities_is_told(
    histofed: Histofed, tmp_path: Path, config: Path, part: str
) -> None:
    if part == "damaged":
        (config.parent / "operator.crt").write_text("-----BEGIN CERTIFICATE-----")
    else:
        foreign = Federation.make().write_operator(tmp_path / "foreign", "localhost:1").parent
        (config.parent / part).write_bytes((foreign / part).read_bytes())
    refused = histofed("status")
    assert (refused.code, refused.error.count("\n")) == (77, 1)
    assert "are not the parts of one identity" in refused.error
    assert "`histofed-aggregator operator NAME --out DIR`" in refused.error


def test_steering_says_what_still_goes_on(histofed: Histofed, aggregator: RunningAggregator) -> None:
    paused = histofed("experiments", "pause", "demo", "--reason", "the GPUs are needed")
    assert paused.out == (
        "Experiment demo is paused: round 2, which is open, goes on to its end or its deadline; none follows.\n"
    )
    assert "the next round begins" in histofed("experiments", "resume", "demo").out
    cancelled = histofed("experiments", "cancel", "demo", "--json").document["experiment"]
    assert (cancelled["state"], cancelled["open_round"]) == ("cancelled", 0)
    assert aggregator.servicer.steered == [("PAUSED", "the GPUs are needed"), ("RUNNING", ""), ("CANCELLED", "")]


@pytest.mark.parametrize("order", ["pause", "resume", "cancel"])
def test_steering_what_has_ended_is_refused_in_words(histofed: Histofed, order: str) -> None:
    refused = histofed("experiments", order, "done")
    assert (refused.code, refused.out) == (65, "")
    assert "experiment done is finished" in refused.error
    assert histofed("experiments", order, "other").code == 65


def test_sites(histofed: Histofed) -> None:
    north, west = histofed("sites", "list", "--json").document["sites"]
    assert north["connected"] is True
    assert west["last_seen_at"] is None

    assert "away" in histofed("sites", "list").out


def test_a_join_line_is_alone_on_stdout(histofed: Histofed, aggregator: RunningAggregator) -> None:
    found = histofed("token", "create", "--site", "north", "--ttl", "2h")

    assert found.out == "line for north\n"
    assert "usable once" in found.error
    assert histofed("token", "create", "--site", "north", "--again", "--json").document["join_line"] == "line for north"
    assert aggregator.servicer.tokens == [("north", 7200, False), ("north", 1800, True)]


def test_the_aggregators_no_is_told_in_its_words(histofed: Histofed, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("nothing = 1\n", encoding="utf-8")

    found = histofed("experiments", "submit", str(file), "--json")

    assert found.code == 65
    assert found.error == "histofed: the experiment file cannot be used: recipe: missing\n"
    assert found.document == {
        "error": {
            "code": 65,
            "kind": "BadData",
            "sentence": "the experiment file cannot be used: recipe: missing",
        }
    }


def test_what_does_not_exist_is_bad_data(histofed: Histofed, tmp_path: Path) -> None:
    assert histofed("experiments", "show", "other").code == 65
    assert histofed("rounds", "list", "other").code == 65
    missing = histofed("experiments", "submit", str(tmp_path / "nothing.toml"))
    assert (missing.code, missing.out) == (65, "")
    assert "No such file" in missing.error


def test_a_bug_of_the_aggregator_is_internal_and_keeps_its_secrets(
    histofed: Histofed, aggregator: RunningAggregator, caplog: pytest.LogCaptureFixture
) -> None:
    aggregator.servicer.broken = True

    found = histofed("status")

    assert found.code == 70
    assert "internal error, see the aggregator's log" in found.error
    assert "a bug" not in found.error


def test_an_aggregator_that_is_not_there(histofed: Histofed, aggregator: RunningAggregator, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"localhost:{unused.getsockname()[1]}"
        config = aggregator.federation.write_operator(tmp_path / "lost", nobody)
        found = histofed("status", "--json", config=config)

    assert found.code == 69
    assert nobody in found.error
    assert found.document["error"]["kind"] == "AggregatorUnavailable"


def test_an_operator_of_another_federation_is_refused(
    histofed: Histofed, aggregator: RunningAggregator, tmp_path: Path
) -> None:
    config = Federation.make("other").write_operator(tmp_path / "foreign", aggregator.address)

    found = histofed("status", config=config)

    assert found.code in (69, 77)
    assert found.error.count("\n") == 1


def test_a_site_cannot_use_the_operators_command_line(
    histofed: Histofed, aggregator: RunningAggregator, config: Path
) -> None:
    site = aggregator.federation.member(aggregator.federation.authority.site("north"))
    (config.parent / "operator.key").write_bytes(site.key_pem)
    (config.parent / "operator.crt").write_bytes(site.certificate_pem)

    assert histofed("status").code == 77


def test_a_key_that_others_can_read_is_refused(histofed: Histofed, config: Path) -> None:
    (config.parent / "operator.key").chmod(0o644)

    found = histofed("status")

    assert found.code == 78
    assert "chmod 600" in found.error
    assert "copied it, have `histofed-aggregator operator NAME --out DIR` run" in found.error


def test_a_missing_key_says_how_to_get_one(histofed: Histofed, config: Path) -> None:
    (config.parent / "operator.key").unlink()

    found = histofed("status")

    assert found.code == 77
    assert "histofed-aggregator operator" in found.error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["rounds"],
        ["rounds", "show", "demo", "one"],
        ["rounds", "show", "demo", "-1"],
        ["rounds", "show", "demo", "3000000000"],
        ["rounds", "show", "\udcff", "1"],
        ["rounds", "list", "dem\udcff"],
        ["experiments", "pause", "demo", "--reason", "\udcff"],
        ["status", "extra"],
        ["token", "create", "--site", "north", "--ttl", "soon"],
        ["models", "pull", "demo"],
    ],
)
def test_a_wrong_call_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("histofed: ")
    assert captured.err.count("\n") == 1
    assert "--help" in captured.err


def test_a_name_that_is_none_never_reaches_the_wire(histofed: Histofed, aggregator: RunningAggregator) -> None:
    assert histofed("token", "create", "--site", "../etc").code == 65
    assert aggregator.servicer.tokens == []


def test_global_options_may_stand_on_either_side(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "sites", "list", "--config", str(config)]) == 0
    assert capsys.readouterr().out.startswith('{"sites": ')


def test_an_error_nobody_thought_of_is_internal(histofed: Histofed, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr("histofed.cli.sites.site_table", broken)

    found = histofed("sites", "list")
    assert found.code == 70
    assert "run it again with --traceback" in found.error
    assert "Traceback" not in found.error
    assert "Traceback" in histofed("sites", "list", "--traceback").error


def test_ctrl_c_is_130_without_a_traceback(histofed: Histofed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("histofed.cli.sites.site_table", interrupt)

    assert histofed("sites", "list") == Ran(130, "", "")


def test_a_closed_pipe_is_no_error_message(config: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "histofed.cli.main", "--config", str(config), "rounds", "list"]
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(writer)

    assert ended.returncode == 128 + signal.SIGPIPE
    assert ended.stderr == b""


def test_tiles_are_drawn(histofed: Histofed, tmp_path: Path) -> None:
    arguments = ["--sites", "2", "--size", "32", "--patients", "1", "--tiles", "1"]

    found = histofed("tiles", "make", str(tmp_path / "tiles"), *arguments, "--json").document

    assert found["tiles"] == 4
    assert len(list((tmp_path / "tiles/site-2/MSIH").iterdir())) == 1
    assert histofed("tiles", "make", str(tmp_path / "tiles"), *arguments).code == 65


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("tiles", "make", "tiles", "--sites", "-1"), "--sites is at least 1"),
        (("rounds", "watch", "demo", "--patience", "-1"), "--patience is at least 0"),
        (("rounds", "watch", "demo", "--patience", "nan"), "--patience is at least 0"),
    ],
)
def test_a_number_below_the_least_is_a_wrong_call(
    histofed: Histofed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = histofed(*command)
    assert (found.code, found.out) == (2, "")
    assert words in found.error
    assert not (tmp_path / "tiles").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_takes_few_letters_gets_words_and_whole_documents(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "Gewebe…"
    for name in ("Darm µ", "Rand"):
        (root / name).mkdir(parents=True)

    def told(*options: str) -> str:
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["data", "check", str(root), *options]) == 65
        return out.buffer.getvalue().decode(encoding)

    assert json.loads(told("--json"))["directory"] == str(root)
    assert "class Darm " in told()
