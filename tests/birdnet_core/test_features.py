"""Every registered feature, by one contract; then each against its definition in numpy, and librosa's."""

import math

import librosa
import numpy as np
import pytest
import torch
from scipy.fft import dct

from birdnet_core.build import build_feature, feature_shape
from birdnet_core.config import TrainConfig, component
from birdnet_core.data.dataset import prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.errors import ConfigError
from birdnet_core.registry import features

RATE, N = 22_050, 88_200
KNOWN_SHAPES = {"log_mel": (1, 128, 173), "mfcc": (3, 40, 130)}


def noise(n_clips=3, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).standard_normal((n_clips, N)).astype(np.float32)
        * np.array([[1.0], [0.1], [0.01]], dtype=np.float32)[:n_clips]
    )


def chirps():
    """Return two clips with a rising and a falling whistle over faint noise."""
    seconds = np.arange(N) / RATE
    whistles = [np.sin(2 * np.pi * (start * seconds + slope * seconds**2)) for start, slope in
                ((1_500, 600), (7_000, -500))]  # fmt: skip
    faint = 0.003 * np.random.default_rng(1).standard_normal((2, N))
    return torch.from_numpy((np.stack(whistles) * [[0.5], [0.05]] + faint).astype(np.float32))


# Embeddings, which need weights, have tests of their own in backbones/.
SPECTROGRAMS = [name for name in features.names() if name != "embedding"]


def made(name, **options):
    return build_feature(component(features, name, options), RATE, N)


@pytest.mark.parametrize("name", SPECTROGRAMS)
def test_shape_is_as_announced(name):
    announced = feature_shape(component(features, name, {}), RATE, N)
    assert announced == KNOWN_SHAPES.get(name, announced)
    assert made(name)(noise()).shape == (3, *announced)


@pytest.mark.parametrize("name", SPECTROGRAMS)
def test_a_clip_does_not_depend_on_its_batch(name):
    batch, feature = noise(), made(name)
    for i in range(3):
        torch.testing.assert_close(feature(batch[i : i + 1])[0], feature(batch)[i], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SPECTROGRAMS)
def test_silence_is_finite_and_fits_half_precision(name):
    spectrogram = made(name)(torch.zeros(1, N))
    assert torch.isfinite(spectrogram.half()).all()


def slaney_mel_filters(n_mels, n_fft):
    """Slaney's filter bank: linear below 1 kHz, logarithmic above, each triangle of unit area."""

    def to_mel(hz):
        return np.where(hz < 1000, 3 * hz / 200, 15 + 27 * np.log(np.maximum(hz, 1) / 1000) / np.log(6.4))

    def to_hz(mel):
        return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(np.log(6.4) * (mel - 15) / 27))

    corners = to_hz(np.linspace(to_mel(np.array(0.0)), to_mel(np.array(RATE / 2)), n_mels + 2))
    hz = np.fft.rfftfreq(n_fft, 1 / RATE)
    rising = (hz[None] - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - hz[None]) / (corners[2:] - corners[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (corners[2:] - corners[:-2]))[:, None]


def mel_power(clip, n_mels=128, n_fft=2048, hop=512):
    padded = np.pad(clip.astype(np.float64), n_fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop] * window
    return slaney_mel_filters(n_mels, n_fft) @ (np.abs(np.fft.rfft(frames, axis=1)) ** 2).T


def test_log_mel_is_db_below_the_clips_maximum():
    clips = noise()
    for clip, spectrogram in zip(
        clips.numpy(), made("log_mel", standardise="none")(clips).numpy(), strict=True
    ):
        db = 10 * np.log10(mel_power(clip))
        np.testing.assert_allclose(spectrogram[0], np.maximum(db - db.max(), -80), atol=2e-3)


def test_log_mel_is_standardised_per_clip():
    features = made("log_mel")(noise())
    torch.testing.assert_close(features.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(dim=(1, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_mfcc_is_the_cosine_transform_of_the_log_mel():
    clips = noise()
    features = made("mfcc", standardise="none")(clips).numpy()
    for clip, spectrogram in zip(clips.numpy(), features, strict=True):
        db = 10 * np.log10(np.maximum(mel_power(clip), 1e-10))
        expected = dct(np.maximum(db, db.max() - 80), axis=0, norm="ortho")[:40]
        first = (173 - 130) // 2
        np.testing.assert_allclose(spectrogram[0], expected[:, first : first + 130], atol=5e-3)


OPTIONS = [
    {},
    {"n_mels": 64, "n_fft": 1024, "hop": 256},
    {"fmin_hz": 500.0, "fmax_hz": 10_000.0},
    {"n_mels": 80, "n_fft": 512, "hop": 300, "fmin_hz": 150.0},
]


def mel_of_librosa(clip, options):
    return librosa.feature.melspectrogram(
        y=clip,
        sr=RATE,
        n_fft=options.get("n_fft", 2048),
        hop_length=options.get("hop", 512),
        n_mels=options.get("n_mels", 128),
        fmin=options.get("fmin_hz", 0.0),
        fmax=options.get("fmax_hz"),
        pad_mode="reflect",
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_log_mel_is_that_of_librosa(options):
    clips = chirps()
    feature = made("log_mel", standardise="none", **options)
    for clip, spectrogram in zip(clips.numpy(), feature(clips).numpy(), strict=True):
        expected = librosa.power_to_db(mel_of_librosa(clip, options), ref=np.max, top_db=80)
        # float32 in both splits, 70 dB below the loudest
        np.testing.assert_allclose(spectrogram[0], expected, atol=5e-2)


@pytest.mark.parametrize("options", OPTIONS)
def test_mfcc_stack_is_that_of_librosa(options):
    clips = chirps()
    feature = made("mfcc", standardise="none", n_frames=None, **options)
    for clip, spectrogram in zip(clips.numpy(), feature(clips).numpy(), strict=True):
        db = librosa.power_to_db(mel_of_librosa(clip, options), ref=1.0, top_db=80)
        mfcc = librosa.feature.mfcc(S=db, n_mfcc=40)
        np.testing.assert_allclose(spectrogram[0], mfcc, atol=2e-2)
        np.testing.assert_allclose(spectrogram[1], librosa.feature.delta(mfcc, mode="nearest"), atol=1e-2)
        # librosa's second difference fits a parabola; ours is the difference of the difference.
        twice = librosa.feature.delta(librosa.feature.delta(mfcc, mode="nearest"), mode="nearest")
        np.testing.assert_allclose(spectrogram[2], twice, atol=1e-2)


def test_deltas_are_regressions_over_nine_frames():
    whole = made("mfcc", standardise="none", n_frames=None)(noise(1)).numpy()[0]
    n = np.arange(-4, 5)
    for source, delta in ((whole[0], whole[1]), (whole[1], whole[2])):
        padded = np.pad(source, ((0, 0), (4, 4)), mode="edge")
        frames = np.lib.stride_tricks.sliding_window_view(padded, 9, axis=1)
        np.testing.assert_allclose(delta, frames @ n / (n**2).sum(), atol=1e-3)


@pytest.mark.parametrize("name", SPECTROGRAMS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hop": 0}, r"features\.hop = 0 .* 1 to 88200"),
        ({"hop": -512}, r"features\.hop = -512 .* 1 to 88200"),
        ({"n_fft": 0}, r"features\.n_fft = 0 .* 16 to 176398"),
        ({"n_fft": -2048}, r"features\.n_fft = -2048 .* 16 to 176398"),
        ({"n_fft": 1025}, r"features\.n_fft = 1025 .* even numbers"),
        ({"n_mels": 0}, r"features\.n_mels = 0 .* 1 to 1025"),
        ({"n_mels": 1026}, r"features\.n_mels = 1026 .* 1 to 1025"),
        ({"fmin_hz": -1.0}, r"features\.fmin_hz = -1 .* 0 to below 11025"),
        ({"fmin_hz": math.nan}, r"option 'fmin_hz' .* = nan is not a finite number"),
        ({"fmin_hz": 11_025.0}, r"features\.fmin_hz = 11025 .* 0 to below 11025"),
        ({"fmin_hz": 9000.0, "fmax_hz": 8000.0}, r"features\.fmin_hz = 9000 .* 0 to below 8000"),
        ({"fmax_hz": 12_000.0}, r"features\.fmax_hz = 12000\.0 .* 1 to 11025"),
        ({"fmax_hz": math.inf}, r"option 'fmax_hz' .* = inf is not a finite number"),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value_and_range(name, options, words):
    with pytest.raises(ConfigError, match=words):
        made(name, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_frames": 300}, r"features\.n_frames = 300 .* 1 to 173"),
        ({"n_frames": 0}, r"features\.n_frames = 0 .* 1 to 173"),
        ({"n_mfcc": 0}, r"features\.n_mfcc = 0 .* 1 to 128"),
        ({"n_mfcc": 80, "n_mels": 64}, r"features\.n_mfcc = 80 .* 1 to 64"),
    ],
)
def test_frames_and_coefficients_of_mfcc_are_what_the_clip_and_the_bands_give(options, words):
    with pytest.raises(ConfigError, match=words):
        made("mfcc", **options)


def test_options_are_refused_before_anything_is_prepared(birds, small_config, tmp_path):
    config = small_config.override({"data.window_s": 0.1, "features.n_fft": 8192})
    with pytest.raises(ConfigError, match=r"features\.n_fft = 8192 .* 16 to 4408"):
        prepare(read_manifest(birds), config, cache=tmp_path / "cache", workers=1)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("n_fft", [16, 1024, 4408])
def test_every_window_that_is_accepted_gives_the_announced_shape(n_fft):
    feature = build_feature(
        component(features, "log_mel", {"n_fft": n_fft, "n_mels": 2, "hop": 245}), RATE, 2205
    )
    assert feature(torch.randn(2, 2205)).shape == (2, *feature.shape)


def test_the_default_feature_is_the_mfcc_stack_standardised_by_training_statistics():
    assert TrainConfig().features.kwargs["standardise"] == "train"
