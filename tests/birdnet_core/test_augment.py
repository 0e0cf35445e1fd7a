"""Every registered augmentation, by one contract; then each against what it promises, measured."""

import logging
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import soundfile
import torch

from birdnet_core.augment import noise as noise_module
from birdnet_core.augment.pitch_shift import pitch_shifted
from birdnet_core.augment.time_stretch import stretched
from birdnet_core.config import component
from birdnet_core.errors import ConfigError
from birdnet_core.registry import augmentations

RATE = 22_050
every_name = pytest.mark.parametrize("name", augmentations.names())
every_case = pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in augmentations.names()]
    + [("noise", {"color": "white"}), ("noise", {"color": "brown"})],
)


def of_domain(domain):
    return [name for name in augmentations.names() if augmentations[name].make.domain == domain]


def made(name, **options):
    chosen = component(augmentations, name, options)
    return augmentations[name].make(RATE, **chosen.kwargs)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(augmentation, n=8, is_silent=False, seed=0):
    """Return what the augmentation is called with, without the generator: clips, or clips and targets."""
    rng = np.random.default_rng(seed)
    shape = (n, 2205) if augmentation.domain == "waveform" else (n, 1, 24, 173)
    clips = torch.from_numpy(0.1 * rng.standard_normal(shape, dtype=np.float32))
    if is_silent:
        clips = torch.zeros_like(clips)
    if augmentation.domain != "mixture":
        return (clips,)
    return clips, torch.from_numpy(rng.dirichlet(np.ones(5), n).astype(np.float32))


def outputs(augmentation, given, seed=0):
    out = augmentation(*given, generator(seed))
    return out if isinstance(out, tuple) else (out,)


def is_changed(before, after):
    return (before != after).flatten(1).any(1)


# ---- the contract


@every_case
def test_the_generator_decides(name, options):
    augmentation = made(name, p=1.0, **options)
    given = inputs(augmentation)
    first, again, other = (outputs(augmentation, given, seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@every_case
def test_batch_and_generator_of_the_gpu_are_served_there(name, options):
    augmentation = made(name, p=1.0, **options).to("cuda")
    given = tuple(tensor.cuda() for tensor in inputs(augmentation))
    out = augmentation(*given, torch.Generator("cuda").manual_seed(1))
    for before, after in zip(given, out if isinstance(out, tuple) else (out,), strict=True):
        assert after.device == before.device
        assert not torch.equal(after, before)


@every_case
def test_the_global_generator_is_left_alone(name, options):
    augmentation = made(name, p=1.0, **options)
    given = inputs(augmentation)
    before = torch.get_rng_state()
    outputs(augmentation, given)
    assert torch.equal(torch.get_rng_state(), before)


@every_name
def test_off_by_default_and_then_nothing_changes(name):
    augmentation = made(name)
    assert augmentations[name].defaults()["p"] == 0.0
    given = inputs(augmentation)
    for before, after in zip(given, outputs(augmentation, given), strict=True):
        assert torch.equal(before, after)


@every_case
@pytest.mark.parametrize("is_silent", [False, True])
@pytest.mark.parametrize("n", [1, 8])
def test_shape_and_type_are_kept_and_all_is_finite(name, options, is_silent, n):
    augmentation = made(name, p=1.0, **options)
    given = inputs(augmentation, n, is_silent)
    for before, after in zip(given, outputs(augmentation, given), strict=True):
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        assert torch.isfinite(after).all()


@pytest.mark.parametrize("name", [*of_domain("features"), *of_domain("mixture")])
def test_features_of_half_precision_stay_so(name):
    augmentation = made(name, p=1.0)
    given = inputs(augmentation)
    after = outputs(augmentation, (1e4 * given[0].half(), *given[1:]))[0]
    assert after.dtype == torch.float16
    assert torch.isfinite(after).all()


@every_case
def test_the_input_is_left_as_it_was(name, options):
    augmentation = made(name, p=1.0, **options)
    given = inputs(augmentation)
    copies = [tensor.clone() for tensor in given]
    outputs(augmentation, given)
    for tensor, copy in zip(given, copies, strict=True):
        assert torch.equal(tensor, copy)


@every_name
def test_each_clip_is_changed_with_probability_p_on_its_own(name):
    augmentation = made(name, p=0.5)
    given = inputs(augmentation, n=2000)
    changed = is_changed(given[0], outputs(augmentation, given)[0])
    # Binomial: 1000 +- 22; up to 12 of those chosen draw no change (an empty mask, a shift by 0).
    assert 900 < int(changed.sum()) < 1090
    # Neighbours agree in half of the cases, as they would not if one draw served several clips.
    agree = (changed[1:] == changed[:-1]).sum()
    assert 900 < int(agree) < 1100


@pytest.mark.parametrize("name", of_domain("mixture"))
def test_targets_still_sum_to_one(name):
    augmentation = made(name, p=1.0)
    targets = outputs(augmentation, inputs(augmentation, 500))[1]
    torch.testing.assert_close(targets.sum(1), torch.ones(500), atol=1e-6, rtol=0)


@every_name
def test_domain_is_one_of_three_and_the_docstring_states_the_usual_p(name):
    assert augmentations[name].make.domain in ("waveform", "features", "mixture")
    assert "Usual p: 0." in augmentations[name].summary


@every_name
def test_an_augmentation_has_no_parameters_and_no_state(name):
    augmentation = made(name)
    assert list(augmentation.parameters()) == []
    assert augmentation.state_dict() == {}


@pytest.mark.parametrize(
    ("name", "options", "accepted"),
    [
        *((name, {"p": p}, "0 to 1") for name in augmentations.names() for p in (-0.1, 1.1)),
        ("spec_augment", {"max_bins": -1}, "0 or more"),
        ("spec_augment", {"max_frames": -1}, "0 or more"),
        ("mixup", {"alpha": 0.0}, "0.01 to 10"),
        ("time_shift", {"max_share": 0.6}, "0 to 0.5"),
        ("gain", {"max_db": -1.0}, "0 to 60"),
        ("noise", {"min_snr_db": -31.0}, "-30 to 100"),
        ("noise", {"max_snr_db": 2.0}, "3 to 100"),
        ("time_stretch", {"min_rate": 0.1}, "0.25 to 4"),
        ("time_stretch", {"max_rate": 0.7}, "0.8 to 4"),
        ("pitch_shift", {"max_semitones": 13.0}, "0 to 12"),
    ],
)
def test_an_option_out_of_range_is_a_config_error(name, options, accepted):
    ((option, value),) = options.items()
    message = rf"augment\.{name}\.{option} = {value} is out of range; it takes {accepted}$"
    with pytest.raises(ConfigError, match=message):
        made(name, **options)


def test_no_option_may_be_nan():
    for name in augmentations.names():
        for option in augmentations[name].options.values():
            if option.annotation is float:
                with pytest.raises(
                    ConfigError, match=f"'{option.name}' of augmentation '{name}' = nan is not a finite"
                ):
                    made(name, **{"p": 0.5, option.name: math.nan})


# ---- spec_augment


def masked(n_clips, bins, frames, channels=1, **options):
    """Return features, masked features and where they differ."""
    features = torch.from_numpy(
        np.random.default_rng(0).standard_normal((n_clips, channels, bins, frames), dtype=np.float32)
    )
    after = made("spec_augment", p=1.0, **options)(features, generator())
    return features.numpy(), after.numpy(), (after != features).numpy()


def test_masked_share_is_that_of_uniform_widths():
    bins, frames, max_bins, max_frames = 24, 40, 6, 10
    is_masked = masked(10_000, bins, frames, max_bins=max_bins, max_frames=max_frames)[2]
    # 1 - E[(1 - b / bins)(1 - f / frames)] with E[b] = max_bins / 2, E[f] = max_frames / 2, independent
    expected = 1 - (1 - max_bins / 2 / bins) * (1 - max_frames / 2 / frames)
    shares = is_masked.mean((1, 2, 3))
    assert shares.mean() == pytest.approx(expected, abs=4 * shares.std() / 100)


def test_a_mask_lies_anywhere_with_equal_probability():
    bins, max_bins = 12, 5
    rows = masked(20_000, bins, 8, max_bins=max_bins, max_frames=0)[2].all((1, 3))
    # Bin k lies in a mask of width w that starts at 0 to bins - w, each as likely.
    expected = [
        np.mean([np.mean([s <= k < s + w for s in range(bins - w + 1)]) for w in range(max_bins + 1)])
        for k in range(bins)
    ]
    np.testing.assert_allclose(rows.mean(0), expected, atol=4 * 0.5 / np.sqrt(20_000))
    widths = np.bincount(rows.sum(1), minlength=max_bins + 1)
    np.testing.assert_allclose(widths / 20_000, np.full(max_bins + 1, 1 / 6), atol=0.012)


def test_a_mask_is_one_band_and_one_span_of_each_clip_with_the_mean_of_each_channel():
    before, after, is_masked = masked(200, 24, 40, channels=3, max_bins=6, max_frames=10)
    seen = set()
    for clip in range(200):
        assert (is_masked[clip] == is_masked[clip, :1]).all()
        bands, spans = is_masked[clip, 0].all(1), is_masked[clip, 0].all(0)
        np.testing.assert_array_equal(is_masked[clip, 0], bands[:, None] | spans[None])
        for span in (bands, spans):
            assert np.abs(np.diff(span.astype(int), prepend=0, append=0)).sum() in (0, 2)
        for channel in range(3):
            filled = after[clip, channel][is_masked[clip, channel]]
            np.testing.assert_allclose(filled, before[clip, channel].mean(dtype=np.float64), atol=1e-6)
        seen.add((bands.tobytes(), spans.tobytes()))
    assert len(seen) > 150


def test_a_mask_wider_than_the_spectrogram_is_as_wide_as_the_spectrogram():
    rows = masked(3000, 4, 6, max_bins=99, max_frames=0)[2].all((1, 3))
    np.testing.assert_allclose(np.bincount(rows.sum(1)) / 3000, np.full(5, 1 / 5), atol=0.03)


# ---- mixup


@pytest.mark.parametrize("alpha", [0.1, 0.4, 2.0])
def test_shares_of_mixup_are_beta_distributed(alpha):
    n = 2000
    targets = made("mixup", p=1.0, alpha=alpha)(torch.zeros(n, 1, 1, 1), torch.eye(n), generator())[1]
    own = targets.diag().double().numpy()
    variance = 1 / (4 * (2 * alpha + 1))
    assert own.mean() == pytest.approx(0.5, abs=4 * np.sqrt(variance / n))
    assert own.var() == pytest.approx(variance, rel=0.1)
    if alpha > 0.1:  # where float32 rounds a tenth of the shares to 1
        assert scipy.stats.kstest(own, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_features_and_targets_are_mixed_alike_with_one_partner_each():
    n = 300
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((n, 2, 3, 4), dtype=np.float32))
    mixed, targets = made("mixup", p=1.0)(features, torch.eye(n), generator())
    expected = np.einsum("ij,jcbf->icbf", targets.double().numpy(), features.double().numpy())
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    assert (targets > 0).sum(1).max() == 2
    # The partners are a permutation: nobody lends itself twice.
    assert ((targets - torch.diag(targets.diag())) > 0).sum(0).max() == 1


# ---- time_shift


def test_time_shift_rolls_each_clip_by_its_own_number_of_frames():
    n, frames = 1000, 40
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((n, 2, 3, frames), dtype=np.float32))
    shifted = made("time_shift", p=1.0, max_share=0.25)(features, generator())
    counts = {}
    for before, after in zip(features.numpy(), shifted.numpy(), strict=True):
        (shift,) = (s for s in range(-20, 20) if np.array_equal(np.roll(before, s, axis=-1), after))
        counts[shift] = counts.get(shift, 0) + 1
    assert sorted(counts) == list(range(-10, 11))
    assert max(counts.values()) < 3 * n / 21


# ---- gain


def test_gain_is_uniform_in_db():
    waveforms = inputs(made("gain"), 2000)[0].double().numpy()
    louder = (
        made("gain", p=1.0, max_db=6.0)(torch.from_numpy(waveforms).float(), generator()).double().numpy()
    )
    db = 20 * np.log10(np.sqrt((louder**2).mean(1) / (waveforms**2).mean(1)))
    assert np.abs(db).max() <= 6 + 1e-4
    assert scipy.stats.kstest(db, scipy.stats.uniform(-6, 12).cdf).pvalue > 0.01
    np.testing.assert_allclose(louder, waveforms * 10 ** (db[:, None] / 20), atol=1e-6)


# ---- noise


def added(waveforms, seed=0, **options):
    after = made("noise", p=1.0, **options)(waveforms, generator(seed))
    return after.double().numpy() - waveforms.double().numpy()


def snr_db(waveforms, noise):
    return 10 * np.log10((waveforms.double().numpy() ** 2).mean(1) / (noise**2).mean(1))


@pytest.mark.parametrize("color", ["white", "pink", "brown"])
def test_snr_is_the_given_one(color):
    waveforms = inputs(made("noise"), 2000)[0]
    ratios = snr_db(waveforms, added(waveforms, color=color, min_snr_db=10.0, max_snr_db=10.0))
    np.testing.assert_allclose(ratios, 10.0, atol=1e-3)


def test_snr_is_uniform_in_db():
    waveforms = inputs(made("noise"), 2000)[0]
    ratios = snr_db(waveforms, added(waveforms))
    assert scipy.stats.kstest(ratios, scipy.stats.uniform(3, 27).cdf).pvalue > 0.01


@pytest.mark.parametrize(("color", "db_a_decade"), [("white", 0), ("pink", -10), ("brown", -20)])
def test_color_is_the_slope_of_the_power(color, db_a_decade):
    waveforms = torch.from_numpy(1e-3 * np.random.default_rng(0).standard_normal((50, 22_050))).float()
    noise = added(waveforms, color=color, min_snr_db=-30.0, max_snr_db=-30.0)
    power_db = 10 * np.log10((np.abs(np.fft.rfft(noise)) ** 2).mean(0))
    hz = np.fft.rfftfreq(22_050, 1 / RATE)
    band = (hz > 30) & (hz < 10_000)
    slope = np.polyfit(np.log10(hz[band]), power_db[band], 1)[0]
    assert slope == pytest.approx(db_a_decade, abs=0.3)


def test_silent_clips_stay_silent_among_others():
    waveforms = inputs(made("noise"), 4)[0]
    waveforms[1] = 0
    after = made("noise", p=1.0)(waveforms, generator())
    assert (after[1] == 0).all()
    assert is_changed(waveforms, after).tolist() == [True, False, True, True]


def sine(hz, seconds, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def peak_hz(samples):
    """Return the frequency of the highest peak, by a parabola through the log power around it."""
    level = np.log(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2 + 1e-30)
    k = int(level.argmax())
    a, b, c = level[k - 1 : k + 2]
    return (k + 0.5 * (a - c) / (a - 2 * b + c)) * RATE / len(samples)


def test_noise_of_a_folder_is_its_recordings_at_the_clips_sample_rate(tmp_path):
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "hum.flac", sine(1000, 3, 44_100), 44_100)
    soundfile.write(tmp_path / "hiss.WAV", sine(1000, 1, 16_000), 16_000)
    (tmp_path / "notes.txt").write_text("not audio")
    augmentation = made("noise", folder=str(tmp_path))
    assert len(augmentation.recordings) == 4 * RATE
    assert augmentation.state_dict() == {}
    waveforms = inputs(augmentation, 32)[0]
    noise = added(waveforms, folder=str(tmp_path), min_snr_db=0.0, max_snr_db=0.0)
    np.testing.assert_allclose(snr_db(waveforms, noise), 0.0, atol=1e-3)
    assert np.median([peak_hz(clip) for clip in noise]) == pytest.approx(1000, rel=0.005)
    # Each clip has a cut of its own: at one level, they begin at different points of the wave.
    level = np.sqrt((noise**2).mean(1))
    assert len(np.unique((noise[:, 0] / level).round(3))) > 16


def test_recordings_shorter_than_a_clip_go_round(tmp_path):
    click = np.zeros(1500)
    click[100] = 0.9
    soundfile.write(tmp_path / "click.wav", click, RATE, subtype="FLOAT")
    waveforms = inputs(made("noise"), 4)[0]
    for noise in added(waveforms, folder=str(tmp_path), min_snr_db=0.0, max_snr_db=0.0):
        clicks = np.flatnonzero(np.abs(noise) > np.abs(noise).max() / 2)
        assert len(clicks) in (1, 2)
        assert set(np.diff(clicks)) <= {1500}


def test_recordings_beyond_the_cap_are_left_out_and_said_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(noise_module, "MAX_RECORDINGS_S", 2)
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", sine(500, 1.5), RATE)
    with caplog.at_level(logging.WARNING):
        augmentation = made("noise", folder=str(tmp_path))
    assert len(augmentation.recordings) == 2 * RATE
    assert "holds 3 recordings; the first 2 fill 2 s" in caplog.text


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_a_folder_without_audio_is_a_config_error(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"augment\.noise\.folder = .*holds no audio; it takes"):
        made("noise", folder=str(tmp_path / folder))


def test_a_broken_recording_is_a_config_error_that_names_it(tmp_path):
    (tmp_path / "rain.wav").write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match=r"rain\.wav cannot be used: the file is a web page"):
        made("noise", folder=str(tmp_path))


# ---- time_stretch and pitch_shift


def burst(at_s, hz=2000, seconds=4.0):
    """Return a tone of a quarter of a second around `at_s`."""
    t = np.arange(round(seconds * RATE)) / RATE
    return sine(hz, seconds) * np.exp(-(((t - at_s) / 0.1) ** 2))


def centre_s(samples):
    power = np.asarray(samples, dtype=np.float64) ** 2
    return (power * np.arange(len(power))).sum() / power.sum() / RATE


def waveforms_of(*clips):
    return torch.from_numpy(np.stack(clips)).float()


@pytest.mark.parametrize("rate", [0.8, 0.93, 1.1, 1.25])
def test_stretched_moves_events_and_keeps_the_pitch(rate):
    after = stretched(waveforms_of(burst(1.0), sine(1234, 4)), rate, RATE).numpy()
    assert after.shape == (2, round(4 * RATE / rate))
    assert centre_s(after[0]) == pytest.approx(1 / rate, abs=0.02)
    assert peak_hz(after[1][RATE : 2 * RATE]) == pytest.approx(1234, rel=1e-3)


@pytest.mark.parametrize("n_samples", [400, 2205, 5000])
def test_stretched_clips_have_the_given_length_at_any_rate(n_samples):
    waveforms = torch.from_numpy(np.random.default_rng(0).standard_normal((2, n_samples))).float()
    for rate in np.geomspace(0.25, 4, 41):
        after = stretched(waveforms, float(rate), RATE)
        assert after.shape == (2, round(n_samples / rate))
        assert torch.isfinite(after).all()


def test_time_stretch_draws_one_rate_a_batch_within_its_range():
    augmentation = made("time_stretch", p=1.0)
    clips = waveforms_of(burst(1.0), burst(1.5), sine(1234, 4))
    rates = []
    for seed in range(12):
        after = augmentation(clips, generator(seed)).numpy()
        assert after.shape == clips.shape
        rates.append(1.0 / centre_s(after[0]))
        assert centre_s(after[1]) == pytest.approx(1.5 / rates[-1], abs=0.02)
        assert peak_hz(after[2][RATE : 2 * RATE]) == pytest.approx(1234, rel=1e-3)
    assert 0.79 < min(rates) < 0.95
    assert 1.05 < max(rates) < 1.26


def test_a_faster_clip_ends_in_zeros():
    after = made("time_stretch", p=1.0, min_rate=1.25, max_rate=1.25)(
        waveforms_of(sine(1000, 4)), generator()
    )
    assert (after[0, round(3.2 * RATE) :] == 0).all()
    assert after[0, : 3 * RATE].square().mean() == pytest.approx(0.125, rel=0.05)


@pytest.mark.parametrize("ratio", [Fraction(9, 8), Fraction(8, 9), Fraction(101, 100), Fraction(89, 97)])
def test_pitch_shifted_multiplies_frequencies_and_keeps_the_timing(ratio):
    after = pitch_shifted(waveforms_of(burst(2.5), sine(1234, 4)), ratio, RATE).numpy()
    assert after.shape == (2, 4 * RATE)
    assert centre_s(after[0]) == pytest.approx(2.5, abs=0.02)
    assert peak_hz(after[1][RATE : 3 * RATE]) == pytest.approx(1234 * ratio, rel=5e-4)
    # The vocoder lets neighbouring bins drift apart, which costs a sine up to 1 dB.
    assert 10 * np.log10((after[1][RATE : 3 * RATE] ** 2).mean() / 0.125) == pytest.approx(0, abs=1)


def test_what_a_pitch_shift_lifts_beyond_half_the_sample_rate_is_gone():
    """10.5 kHz two semitones up are 11.8 kHz, which would come back at 10.3 kHz."""
    after = pitch_shifted(waveforms_of(sine(10_500, 4)), Fraction(55, 49), RATE)[0].numpy()[RATE : 3 * RATE]
    window = np.blackman(len(after))
    assert np.abs(np.fft.rfft(after * window)).max() / (window.sum() / 2) < 10 ** (-50 / 20)


def test_pitch_shift_draws_one_shift_a_batch_within_its_range():
    augmentation = made("pitch_shift", p=1.0)
    clips = waveforms_of(sine(700, 4), sine(3000, 4))
    semitones = []
    for seed in range(12):
        after = augmentation(clips, generator(seed)).numpy()
        low, high = (peak_hz(clip[RATE : 3 * RATE]) for clip in after)
        assert high / low == pytest.approx(3000 / 700, rel=1e-3)
        semitones.append(12 * np.log2(high / 3000))
    assert -2.05 < min(semitones) < -1
    assert 1 < max(semitones) < 2.05
