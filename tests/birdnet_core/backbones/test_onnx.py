"""ONNX files as backbones: fed as their convention says, and refused where the two do not agree."""

from pathlib import Path

import numpy as np
import pytest

from birdnet_core.backbones.onnx import Onnx
from birdnet_core.errors import ConfigError


def noise(n=3, n_samples=4_000):
    return np.random.default_rng(1).uniform(-0.5, 0.5, (n, n_samples)).astype(np.float32)


def test_embeddings_and_logits_are_those_of_the_network_on_scaled_samples(tiny_onnx):
    path, first, second = tiny_onnx()
    backbone = Onnx(path)
    expected = 2 * noise() @ first
    np.testing.assert_allclose(backbone.embed(noise()), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(backbone.label_logits(noise()), expected @ second, rtol=1e-3, atol=1e-3)
    assert backbone.convention.labels == ("Turdus merula", "Parus major")
    assert backbone.embed(noise()).dtype == np.float32


def test_the_hash_follows_the_content_and_not_the_place(tiny_onnx, tmp_path):
    first = Onnx(tiny_onnx()[0]).weights_hash
    (tmp_path / "moved").mkdir()
    for file in ("weights.onnx", "weights.json"):
        (tmp_path / "moved" / file).write_bytes((tmp_path / file).read_bytes())
    assert Onnx(str(tmp_path / "moved" / "weights.onnx")).weights_hash == first
    assert Onnx(tiny_onnx(seed=1)[0]).weights_hash != first


def test_another_convention_is_another_hash(tiny_onnx):
    assert Onnx(tiny_onnx()[0]).weights_hash != Onnx(tiny_onnx(scale=3.0)[0]).weights_hash


@pytest.mark.parametrize("key", ["sample_rate", "window_s", "dim", "output", "licence", "trained_on"])
def test_a_convention_that_lacks_a_key_is_refused_by_the_keys_name(tiny_onnx, key):
    path = tiny_onnx(**{key: None})[0]
    with pytest.raises(ConfigError, match=rf"weights\.json.*{key}"):
        Onnx(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fmin": 50}, "unknown 'fmin'"),
        ({"sample_rate": "fast"}, "sample_rate"),
        ({"labels": None}, "labels and label_output go together"),
        ({"labels": ["Turdus merula", 3]}, "labels and label_output go together"),
    ],
)
def test_a_convention_that_is_wrong_is_refused_by_name(tiny_onnx, changes, words):
    path = tiny_onnx(**changes)[0]
    with pytest.raises(ConfigError, match=words):
        Onnx(path)


def test_files_that_are_missing_are_named(tiny_onnx, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.onnx"):
        Onnx(str(tmp_path / "none.onnx"))
    path = tiny_onnx()[0]
    (tmp_path / "weights.json").unlink()
    with pytest.raises(ConfigError, match=r"weights\.json.*sample_rate"):
        Onnx(path)


def test_a_truncated_file_is_refused_by_name(tiny_onnx):
    path = tiny_onnx()[0]
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"weights\.onnx.*damaged"):
        Onnx(path).embed(noise())


def test_an_output_that_is_not_there_or_of_another_size_is_refused(tiny_onnx):
    path = tiny_onnx(output="pooled")[0]
    with pytest.raises(ConfigError, match="'pooled'.*embedding, logits"):
        Onnx(path).embed(noise())
    path = tiny_onnx(output="logits")[0]
    with pytest.raises(ConfigError, match=r"'logits'.*\[3, 2\].*\[3, 6\]"):
        Onnx(path).embed(noise())


def test_a_wrong_number_of_labels_is_refused(tiny_onnx):
    path = tiny_onnx(labels=["Turdus merula"])[0]
    with pytest.raises(ConfigError, match=r"\[3, 2\].*\[3, 1\]"):
        Onnx(path).label_logits(noise())


def test_windows_of_another_length_are_refused(tiny_onnx):
    path = tiny_onnx(n_samples=3_000)[0]
    with pytest.raises(ConfigError, match="4000 samples"):
        Onnx(path).embed(noise())
