"""The filter banks of public checkpoints: each against its own extractor, or one computed independently."""

import json

import librosa
import numpy as np
import pytest
import torch
import torchaudio

from birdnet_core.build import build_feature
from birdnet_core.config import TrainConfig, component
from birdnet_core.conventions import AS_GIVEN, CHECKPOINTS, IMAGES, OPTIONS, TABLE, convention_of
from birdnet_core.errors import ConfigError
from birdnet_core.registry import features

AST = "MIT/ast-finetuned-audioset-10-10-0.4593"


def clips_of(bank, seconds=None, seed=0):
    """Return two clips of noise, loud and faint, and one of a whistle over faint noise, with an offset."""
    n = round((seconds or bank.window_s) * bank.sample_rate)
    noise = np.random.default_rng(seed).standard_normal((3, n)) * [[0.1], [1e-4], [1e-3]]
    noise[2] += 0.3 * np.sin(2 * np.pi * 3_000 * np.arange(n) / bank.sample_rate) + 0.05
    return torch.from_numpy(noise.astype(np.float32))


def made(name, n_samples):
    bank = TABLE[name]
    chosen = component(features, "log_mel", {"convention": name, **bank.options})
    return build_feature(chosen, bank.sample_rate, n_samples)


def features_of(name, clips):
    feature = made(name, clips.shape[1])
    out = feature(clips)
    assert out.shape[1:] == feature.shape
    return out[:, 0].numpy()


def test_every_option_of_log_mel_is_in_a_filter_bank():
    assert {*OPTIONS, "convention"} == set(features["log_mel"].options)


def test_every_checkpoint_has_a_row_or_is_of_images():
    assert set(CHECKPOINTS.values()) == {*TABLE, IMAGES}


@pytest.mark.parametrize("seconds", [10.0, 3.0, 0.5])
def test_ast_features_are_those_of_its_extractor(seconds):
    from transformers import ASTFeatureExtractor

    clips = clips_of(TABLE["ast_audioset"], seconds)
    expected = ASTFeatureExtractor()([*clips.numpy()], sampling_rate=16_000, return_tensors="np")
    found = features_of("ast_audioset", clips).transpose(0, 2, 1)
    np.testing.assert_allclose(found, expected["input_values"], atol=1e-4)


def kaldi_fbank(clip, rate, n_mels):
    """Kaldi's filter bank in numpy and float64: frames, filters over HTK's mel, and logarithm."""
    size, hop, n_fft = rate * 25 // 1000, rate // 100, 512 if rate == 16_000 else 1024
    frames = np.lib.stride_tricks.sliding_window_view(clip.astype(np.float64), size)[::hop]
    frames = frames - frames.mean(1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hanning(size), n_fft)) ** 2

    def to_mel(hz):
        return 1127 * np.log1p(hz / 700)

    corners = np.linspace(to_mel(20.0), to_mel(rate / 2), n_mels + 2)
    mel = to_mel(np.arange(n_fft // 2) * rate / n_fft)
    rising = (mel[None] - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - mel[None]) / (corners[2:] - corners[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    return np.log(np.maximum(filters @ power[:, :-1].T, np.finfo(np.float32).eps))


@pytest.mark.parametrize("seconds", [10.0, 4.0])
def test_audiomae_features_are_those_of_its_model_card(seconds):
    clips = clips_of(TABLE["audiomae"], seconds)
    found = features_of("audiomae", clips)
    for clip, spectrogram in zip(clips.numpy(), found, strict=True):
        bank = kaldi_fbank(clip, 16_000, 128)
        padded = np.pad(bank, ((0, 0), (0, 1024 - bank.shape[1])))
        np.testing.assert_allclose(spectrogram, (padded + 4.2677393) / (2 * 4.5689974), atol=1e-3)


@pytest.mark.parametrize("seconds", [5.0, 3.0])
def test_bird_mae_features_are_those_of_its_extractor(seconds):
    clips = clips_of(TABLE["bird_mae"], seconds)
    found = features_of("bird_mae", clips)
    assert found.shape == (3, 128, 512)
    for clip, spectrogram in zip(clips.numpy(), found, strict=True):
        bank = kaldi_fbank(clip, 32_000, 128)
        padded = np.pad(bank, ((0, 0), (0, 512 - bank.shape[1])), constant_values=bank.min())
        np.testing.assert_allclose(spectrogram, (padded + 7.2) / (2 * 4.43), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "n_fft", "hop", "n_mels"),
    [("birdset_convnext", 1024, 320, 128), ("birdset_efficientnet", 2048, 256, 256)],
)
def test_birdset_features_are_those_of_torchaudio_and_librosa(name, n_fft, hop, n_mels):
    clips = clips_of(TABLE[name])
    mel = torchaudio.transforms.MelSpectrogram(32_000, n_fft=n_fft, hop_length=hop, n_mels=n_mels, power=2.0)
    found = features_of(name, clips)
    for clip, spectrogram in zip(clips, found, strict=True):
        by_torchaudio = torchaudio.functional.amplitude_to_DB(mel(clip)[None], 10, 1e-10, 0, 80.0)[0].numpy()
        power = librosa.feature.melspectrogram(
            y=clip.double().numpy(), sr=32_000, n_fft=n_fft, hop_length=hop, n_mels=n_mels,
            htk=True, norm=None, pad_mode="reflect",
        )  # fmt: skip
        by_librosa = librosa.power_to_db(power, ref=1.0, top_db=80)
        np.testing.assert_allclose(spectrogram, (by_torchaudio + 4.268) / 4.569, atol=1e-3)
        np.testing.assert_allclose(spectrogram, (by_librosa + 4.268) / 4.569, atol=5e-3)


def config_of(**settings):
    return TrainConfig().override({key.replace("__", "."): value for key, value in settings.items()})


def test_features_and_clips_follow_a_known_checkpoint():
    config = config_of(model__name="audio_ast", model__pretrained=AST)
    assert (config.data.sample_rate, config.data.window_s, config.data.highpass_hz) == (16_000, 10.0, 0.0)
    assert config.features.name == "log_mel"
    assert config.features.kwargs == {"convention": "ast_audioset", **TABLE["ast_audioset"].options}


@pytest.mark.parametrize("name", TABLE)
def test_a_convention_can_be_named_without_a_checkpoint(name):
    config = config_of(features__name="log_mel", features__convention=name)
    assert config.data.sample_rate == TABLE[name].sample_rate
    assert config.features.kwargs == {"convention": name, **TABLE[name].options}
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("setting", "given", "own"),
    [
        ("data.sample_rate", 22_050, "16000"),
        ("data.window_s", 12.0, "at most 10.0"),
        ("features.n_mels", 64, "128"),
        ("features.std", 1.0, "9.1379948"),
        ("features.mel_scale", "slaney", "'kaldi'"),
        ("features.fmax_hz", 7_000.0, "None"),
        ("features.standardise", "clip", "'none'"),
    ],
)
def test_another_value_than_the_checkpoints_is_refused_with_both(setting, given, own):
    settings = {"model.name": "audio_ast", "model.pretrained": AST}
    with pytest.raises(ConfigError) as caught:
        TrainConfig().override({**settings, "features.name": "log_mel", setting: given})
    assert f"{setting} = {given!r}, and the convention 'ast_audioset' has {own}" in str(caught.value)
    config = TrainConfig().override(settings)
    with pytest.raises(ConfigError, match="the convention 'ast_audioset' has"):
        config.override({setting: given})
    as_given = config.override({"features.convention": AS_GIVEN, setting: given})
    assert as_given.flat()[setting] == given


def test_the_feature_itself_refuses_other_values_than_its_convention():
    chosen = component(features, "log_mel", {"convention": "audiomae"})
    with pytest.raises(ConfigError, match="n_mels|n_fft = 2048, and the convention 'audiomae' has 512"):
        build_feature(chosen, 16_000, 160_000)


def test_a_shorter_window_is_padded_where_the_checkpoints_extractor_pads():
    config = config_of(model__name="audio_ast", model__pretrained=AST, data__window_s=4.0)
    assert config.data.window_s == 4.0
    assert config.override({"model.dropout": 0.1}).data.window_s == 4.0
    with pytest.raises(
        ConfigError, match="data.window_s = 4.0, and the convention 'birdset_convnext' has 5.0"
    ):
        config_of(features__name="log_mel", features__convention="birdset_convnext", data__window_s=4.0)


def test_other_features_than_log_mel_are_refused_with_a_checkpoint_of_sounds():
    with pytest.raises(
        ConfigError, match="features.name = 'mfcc'.*takes 'log_mel' of the convention 'ast_aud"
    ):
        config_of(model__name="audio_ast", model__pretrained=AST, features__name="mfcc")


def test_another_checkpoint_brings_its_own_convention():
    config = config_of(model__name="audio_ast", model__pretrained=AST)
    birds = {"model.name": "convnext", "model.pretrained": "DBD-research-group/ConvNeXT-Base-BirdSet-XCL"}
    expected = TrainConfig().override(birds)
    assert expected.features.kwargs["convention"] == "birdset_convnext"
    assert config.override(birds) == expected


def test_a_stated_convention_that_is_not_the_checkpoints_is_refused():
    with pytest.raises(
        ConfigError, match="'bird_mae', and that of model.pretrained = '.*' is 'ast_audioset'"
    ):
        config_of(
            model__name="audio_ast",
            model__pretrained=AST,
            features__name="log_mel",
            features__convention="bird_mae",
        )


def test_an_unknown_convention_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'ast_audioste'; did you mean 'ast_audioset'. .known: .*bird_mae"):
        config_of(features__name="log_mel", features__convention="ast_audioste")


@pytest.mark.parametrize("features__name", ["mfcc", "log_mel"])
def test_networks_of_images_take_any_features(features__name):
    config = config_of(
        model__name="audio_vit",
        model__pretrained="google/vit-base-patch16-224-in21k",
        features__name=features__name,
    )
    assert config.data == TrainConfig().data
    assert config.features.kwargs.get("convention") in (None, IMAGES)
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_dropping_the_checkpoint_leaves_its_features():
    config = config_of(model__name="audio_ast", model__pretrained=AST)
    scratch = config.override({"model.pretrained": None})
    assert (scratch.features, scratch.data) == (config.features, config.data)
    assert scratch.override({"features.name": "mfcc"}).data == TrainConfig().data


EXTRACTORS = {
    "ast": (
        {"feature_extractor_type": "ASTFeatureExtractor", "mean": -4.2677393, "std": 4.5689974,
         "num_mel_bins": 128, "max_length": 1024, "sampling_rate": 16_000},
        "ast_audioset",
    ),
    "ast of another length": ({"feature_extractor_type": "ASTFeatureExtractor", "max_length": 512}, None),
    "bird_mae": (
        {"feature_extractor_type": "BirdMAEFeatureExtractor", "mean": -7.2, "std": 4.43, "target_length": 512,
         "num_mel_bins": 128, "sampling_rate": 32_000},
        "bird_mae",
    ),
    "stated": ({"convention": "birdset_efficientnet"}, "birdset_efficientnet"),
    "images": ({"image_processor_type": "ViTImageProcessor"}, IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_a_folder_is_known_by_its_preprocessor_config(kind, tmp_path):
    stated, name = EXTRACTORS[kind]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    config = config_of(model__name="audio_ast", model__pretrained=str(tmp_path), features__name="log_mel")
    assert config.features.kwargs["convention"] == (name or "preprocessor_config")
    if name is None:
        expected = {**TABLE["ast_audioset"].options, "n_frames": 512}
        assert config.features.kwargs == {"convention": "preprocessor_config", **expected}
        assert (config.data.sample_rate, config.data.window_s) == (16_000, 5.12)
        with pytest.raises(
            ConfigError, match="n_frames = 1024, and the convention 'preprocessor_config' has 512"
        ):
            config.override({"features.n_frames": 1024})
    (tmp_path / "preprocessor_config.json").unlink()
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("content", [None, '{"feature_extractor_type": "Wav2Vec2FeatureExtractor"}'])
def test_a_checkpoint_of_unknown_convention_is_refused_until_it_is_stated(content, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    if content:
        (tmp_path / "preprocessor_config.json").write_text(content)
    settings = {"model.name": "audio_ast", "model.pretrained": str(tmp_path)}
    with pytest.raises(
        ConfigError, match=f"model.pretrained = '{tmp_path}' is not known.*ast_audioset.*as_giv"
    ):
        TrainConfig().override(settings)
    log_mel = {**settings, "features.name": "log_mel"}
    given = TrainConfig().override({**log_mel, "features.convention": AS_GIVEN, "features.n_mels": 64})
    assert given.features.kwargs["n_mels"] == 64
    assert given.data == TrainConfig().data
    assert (
        TrainConfig().override({**log_mel, "features.convention": "ast_audioset"}).data.sample_rate == 16_000
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no JSON object"),
        ('{"convention": "birdset"}', "it takes ast_audioset"),
        ('{"feature_extractor_type": "ASTFeatureExtractor", "std": 0}', "std = 0"),
        (
            '{"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": "many"}',
            "num_mel_bins = 'many'",
        ),
    ],
)
def test_a_damaged_preprocessor_config_is_refused_by_name(content, fault, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        convention_of(str(tmp_path))
    assert str(tmp_path / "preprocessor_config.json") in str(caught.value)
    assert fault in str(caught.value)


@pytest.mark.parametrize(("scale", "norm"), [("slaney", None), ("htk", "slaney"), ("htk", None)])
def test_log_mel_takes_each_option_as_torchaudio_does(scale, norm):
    clips = clips_of(TABLE["birdset_convnext"], 1.0)
    chosen = component(
        features, "log_mel",
        {"n_mels": 64, "n_fft": 1024, "win_length": 600, "hop": 256, "standardise": "none",
         "mel_scale": scale, "norm": norm or "none", "reference": "one", "top_db": None},
    )  # fmt: skip
    mel = torchaudio.transforms.MelSpectrogram(
        32_000, n_fft=1024, win_length=600, hop_length=256, n_mels=64, mel_scale=scale, norm=norm
    )
    expected = 10 * mel(clips).clamp(min=1e-10).log10()
    found = build_feature(chosen, 32_000, clips.shape[1])(clips)[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"mel_scale": "kaldi"}, "features.norm = 'slaney'"),
        ({"win_length": 4096}, "features.win_length = 4096"),
        ({"std": 0.0}, "features.std = 0"),
        ({"top_db": -1.0}, "features.top_db = -1"),
        ({"n_frames": 0}, "features.n_frames = 0"),
        ({"frames": "kaldi", "n_fft": 65_536}, "features.win_length = 65536"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options, fault):
    with pytest.raises(ConfigError, match=fault):
        build_feature(component(features, "log_mel", options), 32_000, 64_000)
