"""Checkpoints of the hub as backbones: their embeddings are those of transformers, called by hand."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from birdnet_core.backbones.hub import Transformers
from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.registry import backbones


def waveforms(rate, seconds, n=3):
    noise = np.random.default_rng(4).standard_normal((n, round(rate * seconds)))
    return (noise * np.array([[0.2], [0.01], [0.0]])[:n]).astype(np.float32)


@pytest.fixture
def folder(tiny_ast, tmp_path):
    shutil.copytree(tiny_ast, tmp_path / "ast")
    return tmp_path / "ast"


def test_the_embedding_of_an_ast_is_that_of_transformers_on_its_extractors_output(tiny_ast):
    from transformers import ASTFeatureExtractor, ASTModel

    clips = waveforms(16_000, 10.0)
    inputs = ASTFeatureExtractor()([*clips], sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.inference_mode():
        expected = ASTModel.from_pretrained(tiny_ast).eval()(inputs).pooler_output.numpy()
    backbone = backbones["transformers"].make(str(tiny_ast))
    stated = backbone.convention
    assert (stated.sample_rate, stated.window_s, stated.highpass_hz, stated.dim) == (16_000, 10.0, 0.0, 24)
    found = backbone.embed(clips)
    assert found.shape == (3, 24) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_embedding_of_a_birdset_network_is_its_pooled_output(checkpoints, tmp_path):
    import torchaudio
    from transformers import ConvNextModel

    shutil.copytree(checkpoints["convnext"], tmp_path / "birds")
    (tmp_path / "birds" / "preprocessor_config.json").write_text('{"convention": "birdset_convnext"}')
    clips = waveforms(32_000, 5.0)[:2]
    power = torchaudio.transforms.MelSpectrogram(32_000, n_fft=1024, hop_length=320, n_mels=128)
    db = torchaudio.functional.amplitude_to_DB(power(torch.from_numpy(clips))[:, None], 10, 1e-10, 0, 80.0)
    with torch.inference_mode():
        network = ConvNextModel.from_pretrained(tmp_path / "birds").eval()
        expected = network(((db + 4.268) / 4.569).expand(-1, 3, -1, -1)).pooler_output.numpy()
    backbone = Transformers(str(tmp_path / "birds"))
    assert backbone.convention.dim == 32
    np.testing.assert_allclose(backbone.embed(clips), expected, atol=1e-4)


def test_a_config_with_its_embeddings_follows_the_checkpoint(tiny_ast):
    config = TrainConfig().override(
        {"features.name": "embedding", "features.backbone": "transformers", "features.weights": str(tiny_ast)}
    )
    assert (config.data.sample_rate, config.data.window_s, config.data.highpass_hz) == (16_000, 10.0, 0.0)
    assert config.features.kwargs["weights_hash"] == Transformers(str(tiny_ast)).weights_hash


def test_other_weights_and_another_filter_bank_have_another_hash(folder):
    before = Transformers(str(folder)).weights_hash
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**extractor, "mean": -5.0}))
    other_bank = Transformers(str(folder)).weights_hash
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert len({before, other_bank, Transformers(str(folder)).weights_hash}) == 3


def spoilt(folder, name, content):
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model.safetensors", lambda b: b[:-100], ["cannot use", "safetensors"]),
        ("model.safetensors", lambda b: b[:20], ["cannot use", "safetensors"]),
        ("preprocessor_config.json", lambda b: None, ["filter bank", "not known", "convention", "bird_mae"]),
        ("preprocessor_config.json", lambda b: {"image_processor_type": "V"}, ["network of photographs"]),
        ("preprocessor_config.json", lambda b: {"convention": "bird_mae"}, ["max_length = 128, 1024", "512"]),
        ("config.json", lambda b: None, ["cannot use", "config.json"]),
        ("config.json", lambda b: b[:50], ["cannot use", "config.json"]),
        ("config.json", lambda b: {"model_type": "wav2vec2"}, ["'wav2vec2'", "convnext", "efficientnet"]),
        (
            "config.json",
            lambda b: {"model_type": "bird_mae", "auto_map": {"AutoModel": "x.Y"}},
            ["'bird_mae'", "code of a checkpoint is never run"],
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_by_name(name, change, words, folder):
    spoilt(folder, name, change((folder / name).read_bytes()))
    with pytest.raises(ConfigError) as caught:
        Transformers(str(folder))
    assert all(word in str(caught.value) for word in [str(folder), *words]), caught.value


def test_a_pickle_is_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=f"{folder}.*no safetensors, only pytorch_model.bin, a pickle.*save_pre"
    ):
        Transformers(str(folder))


def test_weights_that_the_network_lacks_are_named(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop(next(key for key in weights if key.endswith("cls_token")))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights, such as .*cls_token"):
        Transformers(str(folder)).embed(waveforms(16_000, 10.0, 1))


def test_a_missing_checkpoint_is_one_line_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for given in ("nobody/nothing", str(tmp_path / "away")):
        with pytest.raises(ConfigError) as caught:
            Transformers(given)
        line = str(caught.value)
        assert "\n" not in line
        assert repr(given) in line and "connect to the network" in line and "folder of a checkpoint" in line
    with pytest.raises(ConfigError, match="takes features.weights, the hub id or the folder"):
        Transformers("")


def test_looking_backbones_up_does_not_import_transformers():
    code = (
        "import sys; from birdnet_core.registry import backbones; assert 'transformers' in backbones.names();"
        "sys.exit('transformers' in sys.modules or 'huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
