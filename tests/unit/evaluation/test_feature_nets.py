"""Feature nets from local files: right numbers for real weights, words for everything else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from histofed.base.errors import BadData
from histofed.evaluation import feature_nets
from histofed.evaluation.feature_nets import load_feature_net


def _saved(path: Path, document: object) -> tuple[Path, str]:
    torch.save(document, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("name", "length"), [("mobilenet-v1", 768), ("squeezenet-1.1", 512)])
def test_every_net_turns_tiles_of_any_size_into_vectors(tmp_path: Path, name: str, length: int) -> None:
    torch.manual_seed(1)
    state = feature_nets._BUILDERS[name]().state_dict()
    net = load_feature_net(name, *_saved(tmp_path / "net.pt", {**state, "head.weight": torch.zeros(2)}))
    tiles = np.random.default_rng(1).integers(0, 256, (3, 3, 48, 48), np.uint8)
    features = net.features(tiles)
    assert features.shape == (3, length)
    assert np.isfinite(features).all()
    # a batch is only how they are computed
    assert np.allclose(net.features(tiles, batch=1), features, rtol=1e-4, atol=1e-5)


def test_a_wrong_hash_file_or_name_is_refused_in_words(tmp_path: Path) -> None:
    path, digest = _saved(tmp_path / "net.pt", {"features.0.weight": torch.zeros(24, 3, 3, 3)})
    with pytest.raises(BadData, match=r"is not known; use one of mobilenet-v1, squeezenet-1.1"):
        load_feature_net("inception", path, digest)
    with pytest.raises(BadData, match=r"no file .* with SHA-256"):
        load_feature_net("mobilenet-v1", path, "0" * 64)
    with pytest.raises(BadData, match=r"no file .* with SHA-256"):
        load_feature_net("mobilenet-v1", tmp_path / "other.pt", digest)
    with pytest.raises(BadData, match=r"lacks tensor 'features.1.weight'"):
        load_feature_net("mobilenet-v1", path, digest)


def test_a_file_that_is_no_state_dict_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(b"not a network")
    with pytest.raises(BadData, match=r"does not hold the weights"):
        load_feature_net("mobilenet-v1", path, hashlib.sha256(path.read_bytes()).hexdigest())
