"""Federations whose updates are encoded: every encoding commits its rounds, and kill -9 in the middle changes no bit."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from histofed import weights
from histofed.audit.verify import verify
from histofed.base.encoding import ENCODINGS, EXACT, Encoding
from histofed.encodings.file import Form, encode_file
from histofed.v1 import types_pb2
from tests.e2e.conftest import NewFederation
from tests.support import expected
from tests.support.daemons import KILLED
from tests.support.federation import Federation, mean_experiment
from tests.support.hospitals import HOSTILE
from tests.support.hostile_site import HostileSite

PAIR = ("north", "south")
DIMENSION = 20_000
CODED = tuple(name for name in ENCODINGS if name != "float32")


@pytest.fixture(scope="module")
def bruised(new_federation: NewFederation) -> Federation:
    """Two sites and an aggregator; after each story all three run again."""
    federation = new_federation()
    federation.start_aggregator()
    federation.start_agents(*PAIR)
    return federation


def experiment(encoding: Encoding, delay_s: float) -> str:
    """Two rounds; `scale` puts the sites' goals apart, so that differences are not small."""
    extra = f'[sampling]\nsites = {list(PAIR)}\n[aggregation]\nencoding = "{encoding}"'
    config = f"dimension = {DIMENSION}\nsteps = 10\ndelay_s = {delay_s}"
    return mean_experiment(f"in-{encoding}", 2, extra=extra, config=config)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", CODED)
def test_everything_is_killed_in_mid_round(bruised: Federation, tmp_path: Path, encoding: Encoding) -> None:
    toml = experiment(encoding, delay_s=0.4)
    name = bruised.submit(toml)
    bruised.wait_until_trained(name, "north", steps=2)
    for daemon in ("aggregator", *PAIR):
        assert bruised.daemons[daemon].stop(signal.SIGKILL) == KILLED
    bruised.start_agents(*PAIR)
    bruised.start_aggregator()
    assert bruised.wait_until_ended(name)["experiment"]["state"] == "finished"
    assert bruised.parts(name) == expected.models(toml, PAIR, tmp_path)
    check_what_is_told(bruised, name, encoding)
    for folder in (bruised.state / "journal", *(bruised.site(site) / "state/journal" for site in PAIR)):
        assert verify(folder).ok


def check_what_is_told(federation: Federation, name: str, encoding: Encoding) -> None:
    """The operator reads what was sent, and how far the mean is from that of float32 updates."""
    state = federation.cli("rounds", "show", name, "2")["round"]
    ratio = state["metrics"]["encoding_ratio"]
    assert ratio < (0.95 if encoding in EXACT else 0.45), "steps this large leave little to gain exactly"
    assert (state["metrics"]["encoding_error_max"] == 0.0) == (encoding in EXACT)
    assert state["metrics"]["encoding_error_rms"] < 0.01
    sent = sum(task["update_bytes"] for task in state["tasks"])
    assert sent == pytest.approx(len(PAIR) * 4 * DIMENSION * ratio)
    text = federation.command(
        "histofed.cli.main", "--config", str(federation.operator_config), "rounds", "show", name, "2"
    ).out
    assert f"{ratio:.3f} of float32's bytes" in text


def test_models_after_the_first_come_as_steps(bruised: Federation) -> None:
    extra = f'[sampling]\nsites = {list(PAIR)}\nminimum = 2\n[aggregation]\nencoding = "bfloat16-delta"'
    before = downloaded(bruised)
    name = bruised.submit(mean_experiment("steps", 3, extra=extra, config=f"dimension = {DIMENSION}\nsteps = 10"))
    assert bruised.wait_until_ended(name)["experiment"]["state"] == "finished"
    moved, whole = downloaded(bruised) - before, 4 * DIMENSION
    ratio = bruised.cli("rounds", "show", name, "2")["round"]["metrics"]["step_ratio"]
    assert ratio < 0.5
    # one whole model and two steps for each site; a header is a few hundred bytes
    assert moved == pytest.approx(len(PAIR) * whole * (1 + 2 * ratio), rel=0.1)


def downloaded(federation: Federation) -> float:
    """Bytes that the aggregator sent so far."""
    return federation.measured().get('histofed_transfer_bytes_total{direction="download",how="sent"}', 0.0)


def test_a_hostile_site_is_refused_in_words_and_an_honest_one_is_let_in(bruised: Federation, tmp_path: Path) -> None:
    """Over the real wire: damaged bytes, another base, another encoding than the experiment's, then what is right."""
    extra = f'[sampling]\nminimum = 1\nsites = ["{HOSTILE}"]\n[round]\nabandoned_limit = 9'
    name = bruised.submit(mean_experiment("lies", 1, extra=f'{extra}\n[aggregation]\nencoding = "bfloat16-delta"'))
    base, trained, coded = (tmp_path / file for file in ("base", "trained", "coded"))

    def honest(sha256: str) -> bytes:
        encode_file(trained, base, Form("bfloat16-delta", sha256), 1e4, coded)
        return coded.read_bytes()

    with HostileSite(bruised.address, bruised.site(HOSTILE) / "state/identity/agent.pem", tmp_path) as site:
        site.hello()
        lies = {
            "cannot be decoded: it ends too soon": lambda right: honest(right)[:-1],
            "1 bytes follow its last tensor": lambda right: honest(right) + b"\0",
            "says base": lambda right: honest("ab" * 32),
            "does not begin like one": lambda right: trained.read_bytes(),
            "": honest,
        }
        for words, lie in lies.items():
            offer = site.wait_for_offer(name)
            site.accept(offer)
            tensors = site.base_of(offer)
            weights.save(base, tensors)
            weights.save(trained, {"mean.value": tensors["mean.value"] + np.float32(0.01)})
            coded.write_bytes(lie(offer.base.sha256))
            verdict = site.send_file(offer, coded, encoding="bfloat16-delta")
            assert words in verdict.reason
            assert verdict.state == (types_pb2.TASK_STATE_REJECTED if words else types_pb2.TASK_STATE_ADMITTED)
    assert bruised.wait_until_ended(name)["experiment"]["state"] == "finished"
