import numpy as np
import pytest
import soundfile
import torch

from birdnet_core.config import DataConfig
from birdnet_core.data import windows as module
from birdnet_core.data.audio import cut, decode, highpass, opened, resample
from birdnet_core.data.windows import windows
from birdnet_core.errors import DataError

CONFIG = DataConfig(window_s=1.0)


def noise(seconds, rate, channels=1):
    rng = np.random.default_rng(0)
    return (0.3 * rng.standard_normal((round(seconds * rate), channels))).astype(np.float32)


def read(path, config=CONFIG, overlap_s=0.0):
    with opened(path) as recording:
        return list(windows(recording, config, overlap_s))


@pytest.mark.parametrize("block", [700, 5_000, 2**19])
@pytest.mark.parametrize("rate", [8_012, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("highpass_hz", [0.0, 20.0, 500.0])
def test_windows_are_those_of_the_whole_recording(tmp_path, monkeypatch, block, rate, highpass_hz):
    monkeypatch.setattr(module, "BLOCK_VALUES", block)
    config = DataConfig(window_s=0.7, highpass_hz=highpass_hz)
    soundfile.write(tmp_path / "a.wav", noise(3.3, rate, 2), rate)
    samples, _ = decode(tmp_path / "a.wav")
    whole = resample(torch.from_numpy(samples), rate, 22_050)
    if highpass_hz:
        whole = highpass(whole, 22_050, highpass_hz)
    found = read(tmp_path / "a.wav", config, overlap_s=0.2)
    n, hop = config.n_samples, config.n_samples - 4_410
    assert len(found) == 1 + int(np.ceil((len(whole) - n) / hop))
    for i, window in enumerate(found):
        torch.testing.assert_close(window.samples, cut(whole, i * hop, n), rtol=0, atol=2e-6)
        assert window.start_s == pytest.approx(i * 0.5, rel=1e-3)
    assert found[-1].end_s == pytest.approx(3.3, abs=1e-3)


@pytest.mark.parametrize(
    ("seconds", "overlap_s", "spans"),
    [
        (0.3, 0.0, [(0.0, 0.3)]),
        (1.0, 0.0, [(0.0, 1.0)]),
        (1.02, 0.0, [(0.0, 1.0)]),
        (1.5, 0.0, [(0.0, 1.0), (1.0, 1.5)]),
        (2.0, 0.5, [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]),
        (2.2, 0.5, [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (1.5, 2.2)]),
    ],
)
def test_windows_cover_the_recording_and_the_last_is_padded(tmp_path, seconds, overlap_s, spans):
    soundfile.write(tmp_path / "a.wav", noise(seconds, 22_050), 22_050)
    found = read(tmp_path / "a.wav", overlap_s=overlap_s)
    assert [(w.start_s, w.end_s) for w in found] == [pytest.approx(span, abs=1e-9) for span in spans]
    last, n_real = found[-1], round((found[-1].end_s - found[-1].start_s) * 22_050)
    assert last.samples[:n_real].any() and not last.samples[n_real:].any()
    assert {len(w.samples) for w in found} == {22_050}


def test_a_fault_further_on_comes_after_the_windows_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_VALUES", 22_050)
    samples = noise(3.5, 22_050)
    samples[-1000] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 22_050, subtype="FLOAT")
    found = []
    with pytest.raises(DataError, match="not finite"), opened(tmp_path / "a.wav") as recording:
        for window in windows(recording, CONFIG):
            found.append(window.start_s)
    assert found == [0.0, 1.0]


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
def test_blocks_of_every_format_are_the_whole(tmp_path, name):
    soundfile.write(tmp_path / name, noise(3, 32_000), 32_000)
    whole, _ = decode(tmp_path / name)
    with opened(tmp_path / name) as recording:
        blocks = list(recording.blocks(10_000))
        assert recording.n_read == len(whole)
    assert max(map(len, blocks)) == 10_000
    # The mp3 decoder rounds by where its output lies in memory.
    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=0, atol=1e-6 if name == "a.mp3" else 0)
