import csv

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import lfilter

from birdnet_core.config import TrainConfig
from birdnet_core.data.audio import cut, decode, highpass, most_active_windows, resample, resampled
from birdnet_core.data.clip_store import active_windows
from birdnet_core.errors import ConfigError, DataError

RATE = 22_050


def tone(hz: float, seconds: float, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_decodes_every_format_to_the_same_tone(tmp_path, extension):
    soundfile.write(tmp_path / f"a.{extension}", 0.5 * tone(1000, 1.0, 32_000), 32_000)
    samples, rate = decode(tmp_path / f"a.{extension}")
    assert rate == 32_000
    assert samples.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.fft.rfftfreq(len(samples), 1 / rate)[spectrum.argmax()] == pytest.approx(1000, abs=5)


def test_channels_are_averaged(tmp_path):
    left = tone(500, 0.2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -left], axis=1), RATE, subtype="FLOAT")
    samples, _ = decode(tmp_path / "a.wav")
    assert np.abs(samples).max() < 1e-6


def test_amplitudes_above_one_are_kept(tmp_path):
    soundfile.write(tmp_path / "a.wav", 4 * tone(500, 0.2), RATE, subtype="FLOAT")
    assert np.abs(decode(tmp_path / "a.wav")[0]).max() == pytest.approx(4, rel=1e-2)


def write_bad(folder, kind):
    path = folder / f"{kind}.wav"
    if kind == "absent":
        return path
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not audio, whatever its name says\n" * 3)
    elif kind == "web page":
        path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    elif kind == "git-lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    elif kind == "no frames":
        soundfile.write(path, np.zeros(0, np.float32), RATE)
    elif kind == "5 frames":
        soundfile.write(path, np.zeros(5, np.float32), RATE)
    elif kind == "2^36 frames promised":
        whole = folder / "whole.flac"
        soundfile.write(whole, tone(500, 1.0), RATE)
        content = bytearray(whole.read_bytes())
        # The length in STREAMINFO: the last 36 bits before its MD5.
        content[21] |= 0x0F
        content[22:26] = b"\xff" * 4
        path = folder / "promises.flac"
        path.write_bytes(content)
    elif kind == "not finite":
        soundfile.write(path, np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    else:
        whole = folder / f"whole.{kind.split()[-1]}"
        noise = np.random.default_rng(0).uniform(-0.3, 0.3, 4 * RATE).astype(np.float32)
        soundfile.write(whole, noise, RATE)
        path = folder / f"cut.{kind.split()[-1]}"
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "No such file"),
        ("empty", r"0 bytes"),
        ("text", "text, not audio"),
        ("web page", "web page"),
        ("git-lfs", "git lfs pull"),
        ("no frames", "0 frames"),
        ("5 frames", "5 frames"),
        ("not finite", "not finite"),
        ("2^36 frames promised", "decoder gave up"),
        ("half a wav", "truncated"),
        ("half a flac", "decoder gave up"),
        ("half a ogg", "truncated"),
        ("half a mp3", "truncated"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(tmp_path, kind, reason, capfd):
    with pytest.raises(DataError, match=reason):
        decode(write_bad(tmp_path, kind))
    assert capfd.readouterr() == ("", "")


def test_all_the_formats_found_in_the_wild_decode_without_noise(shared, capfd):
    with open(shared / "audio_formats" / "index.csv") as index:
        rows = list(csv.DictReader(index))
    assert len(rows) > 15
    for row in rows:
        samples, rate = decode(shared / "audio_formats" / row["file"])
        assert rate == int(row["sample_rate"]), row["file"]
        assert len(samples) / rate == pytest.approx(float(row["dur_soundfile_read"]), abs=2e-3), row["file"]
    assert capfd.readouterr() == ("", "")


def test_each_corrupt_file_ends_as_its_index_says(shared, capfd):
    ends = {}
    with open(shared / "audio_corrupt" / "index.csv") as index:
        for row in csv.DictReader(index):
            try:
                decode(shared / "audio_corrupt" / row["file"])
                ends[row["file"]] = "read"
            except DataError as error:
                ends[row["file"]] = str(error)
    # The index says of these that decoders still read them; their audio is whole.
    readable = {"yn_kurbaga_34.wav", "yn_tavuk_8.wav", "yn_inek_26.wav"}
    assert {file for file, end in ends.items() if end == "read"} == readable
    assert "git-lfs" in ends["synthetic/git_lfs_pointer.wav"]
    assert "truncated" in ends["synthetic/truncated_half.mp3"]
    assert "5 frames" in ends["os_stereo.wav"]
    assert "0 bytes" in ends["synthetic/zero_bytes.mp3"]
    assert capfd.readouterr() == ("", "")


RATES = [(48_000, RATE), (44_100, RATE), (96_000, RATE), (32_000, RATE), (8_000, RATE), (16_000, 48_000),
         (44_100, 48_000), (96_000, 48_000), (22_050, 48_000), (8_012, RATE), (21_276, RATE)]  # fmt: skip


def level_db(samples: np.ndarray, hz: float, rate: int) -> float:
    """Return the level of a tone of `hz` that the samples are said to hold, by least squares."""
    at = 2 * np.pi * hz / rate * np.arange(len(samples))
    found = np.linalg.lstsq(np.stack([np.sin(at), np.cos(at)], axis=1), samples, rcond=None)[0]
    return 20 * np.log10(np.hypot(*found))


@pytest.mark.parametrize(("rate", "target"), RATES)
def test_a_tone_keeps_its_pitch_and_level_up_to_the_edge_of_the_band(rate, target):
    for share in (0.1, 0.5, 0.8, 0.86):
        hz = share * min(rate, target) / 2
        samples = resample(torch.from_numpy(tone(hz, 2.0, rate)), rate, target).numpy()
        assert len(samples) == 2 * target
        middle = samples[target // 4 : -target // 4]
        assert abs(level_db(middle, hz, target)) < 0.5
        # Nothing else is there: images of it, or another pitch.
        assert np.abs(middle).max() < 10 ** (0.5 / 20)


@pytest.mark.parametrize(("rate", "target"), [pair for pair in RATES if pair[0] > pair[1]])
def test_a_tone_above_the_new_band_leaves_nothing(rate, target):
    for share in (1.01, 1.134, 1.3, 1.7):
        hz = share * target / 2
        if hz < 0.99 * rate / 2:
            samples = resample(torch.from_numpy(tone(hz, 2.0, rate)), rate, target).numpy()
            assert np.abs(samples[target // 4 : -target // 4]).max() < 10 ** (-70 / 20)


@pytest.mark.parametrize(("rate", "target"), RATES)
@pytest.mark.parametrize("block", [1, 700, 50_000])
def test_blocks_are_resampled_as_the_whole_is(rate, target, block):
    n = 3_001 if block == 1 else 100_003
    samples = torch.from_numpy(np.random.default_rng(0).standard_normal(n).astype(np.float32))
    whole = resample(samples, rate, target)
    blocks = torch.cat(list(resampled(samples.split(block), rate, target)))
    assert len(whole) == pytest.approx(n * target / rate, abs=0.5)
    assert torch.equal(whole, blocks)


def test_a_recording_is_loaded_at_the_given_rate(tmp_path):
    import birdnet_core

    stereo = np.stack([tone(1000, 3.0, 48_000), tone(3000, 3.0, 48_000)], axis=1)
    soundfile.write(tmp_path / "a.flac", 0.5 * stereo, 48_000)
    samples = birdnet_core.load_audio(tmp_path / "a.flac", sample_rate=RATE)
    assert samples.dtype == np.float32 and samples.shape == (3 * RATE,)
    for hz in (1000, 3000):
        assert level_db(samples[RATE:-RATE], hz, RATE) == pytest.approx(20 * np.log10(0.25), abs=0.1)
    as_it_is = birdnet_core.load_audio(str(tmp_path / "a.flac"), 48_000)
    np.testing.assert_array_equal(as_it_is, decode(tmp_path / "a.flac")[0])
    with pytest.raises(ConfigError, match="sample_rate = 0 .* 1 Hz or more"):
        birdnet_core.load_audio(tmp_path / "a.flac", 0)
    with pytest.raises(DataError, match="No such file"):
        birdnet_core.load_audio(tmp_path / "b.flac", RATE)


@pytest.mark.parametrize("corner_hz", [1.0, 20.0, 500.0, 11_000.0])
@pytest.mark.parametrize("n", [1, 300, 50_001])
def test_the_high_pass_is_the_recursion_in_double_precision(corner_hz, n):
    samples = 1 + np.random.default_rng(0).standard_normal(n)
    angle = 2 * np.pi * corner_hz / RATE
    alpha, cosine = np.sin(angle) / (2 * 0.707), np.cos(angle)
    b = np.array([1, -2, 1]) * (1 + cosine) / 2
    expected = lfilter(b, [1 + alpha, -2 * cosine, 1 - alpha], samples)
    filtered = highpass(torch.from_numpy(samples.astype(np.float32)), RATE, corner_hz)
    np.testing.assert_allclose(filtered.numpy(), expected, atol=1e-5)


def test_the_most_active_window_holds_the_bird():
    rng = np.random.default_rng(0)
    samples = 0.001 * rng.standard_normal(20 * RATE).astype(np.float32)
    samples[int(11.5 * RATE) : int(13.5 * RATE)] += tone(3000, 2.0)
    samples[int(4 * RATE)] = 5.0  # a click is louder than the bird, and one frame long
    (start,) = most_active_windows(torch.from_numpy(samples), RATE, 4.0, 1)
    assert 9.5 * RATE <= start <= 11.5 * RATE


def test_further_windows_overlap_by_at_most_half():
    samples = torch.from_numpy(np.random.default_rng(1).standard_normal(13 * RATE).astype(np.float32))
    starts = sorted(most_active_windows(samples, RATE, 4.0, 5))
    assert len(starts) >= 2
    assert min(np.diff(starts)) >= 2 * RATE - 0.1 * RATE
    assert starts[-1] + 4 * RATE <= len(samples)


@pytest.mark.parametrize("seconds", [0.06, 1.0, 4.0])
def test_a_short_recording_is_one_window_padded_at_its_end(seconds):
    samples = torch.ones(int(seconds * RATE))
    assert most_active_windows(samples, RATE, 4.0, 3) == [0]
    window = cut(samples, 0, 4 * RATE)
    assert len(window) == 4 * RATE
    assert window.sum() == len(samples)


def test_silence_has_windows_too():
    assert len(most_active_windows(torch.zeros(10 * RATE), RATE, 4.0, 2)) == 2


@pytest.mark.parametrize("rate", [8_012, 22_050, 32_000, 48_000])
@pytest.mark.parametrize("extra", [1, 37, 2_000])
def test_a_recording_a_little_longer_than_a_window_has_one(rate, extra):
    for window_s in (0.13, 1.0, 4.0):
        starts = most_active_windows(torch.randn(round(window_s * rate) + extra), rate, window_s, 1)
        assert len(starts) == 1 and 0 <= starts[0] <= extra


def test_activity_outside_of_the_band_does_not_count():
    """A whistle at 3 kHz against louder rumble and a louder whistle above the band."""
    t = np.arange(20 * 32_000) / 32_000
    samples = 0.01 * np.random.default_rng(0).standard_normal(len(t))
    for hz, level, first in ((3_000, 0.1, 4), (60, 2.0, 10), (13_000, 2.0, 15)):
        part = (t >= first) & (t < first + 3)
        samples[part] += level * np.sin(2 * np.pi * hz * t[part])
    recording = torch.from_numpy(samples.astype(np.float32))
    (start,) = most_active_windows(recording, 32_000, 4.0, 1, band_hz=(500.0, 11_025.0))
    assert 3 <= start / 32_000 <= 4
    (start,) = most_active_windows(recording, 32_000, 4.0, 1)
    assert start / 32_000 > 8


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_a_window_is_cut_from_the_recording_as_if_all_of_it_were_filtered(rate):
    config = TrainConfig().data
    samples = np.random.default_rng(2).standard_normal(9 * rate).astype(np.float32)
    samples[6 * rate :] *= 3
    (start_s,), windows = active_windows(samples, rate, config)
    assert start_s > 3
    whole = highpass(resample(torch.from_numpy(samples), rate, 22_050), 22_050, config.highpass_hz)
    # The start is a whole number of samples before and after resampling; `starts_s` rounds to 1 ms.
    best = min(
        float(
            (cut(whole, round(start_s * 22_050) + shift, 88_200) - torch.from_numpy(windows[0])).abs().max()
        )
        for shift in range(-25, 26)
    )
    assert best < 1e-4


@pytest.mark.parametrize("rate", [8_012, 21_276, 44_099])
def test_a_window_of_an_odd_rate_lies_less_than_a_sample_off(rate):
    config = TrainConfig().override({"data.highpass_hz": 0.0}).data
    samples = 0.01 * np.random.default_rng(2).standard_normal(9 * rate).astype(np.float32)
    samples[6 * rate :] += tone(1000, 3.0, rate)
    (start_s,), windows = active_windows(samples, rate, config)
    # `starts_s` rounds to 1 ms, so only the distance between the beginnings is measured, in the tone's phase.
    begin = round((6 - start_s) * RATE)
    assert np.abs(windows[0][: begin - 50]).max() < 0.1
    assert np.abs(windows[0][begin + 50 :]).max() == pytest.approx(1, abs=0.1)
