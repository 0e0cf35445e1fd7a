"""How the spectrograms of public checkpoints are computed: their filter banks, levels and statistics.

Pretrained weights are of use with the spectrograms that they were trained on. Every row states its source; a
checkpoint whose values could not be confirmed has none. Those of other checkpoints are read from the
preprocessor_config.json with their weights.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from birdnet_core.errors import ConfigError, did_you_mean

AS_GIVEN = "as_given"
IMAGES = "images"
IN_FOLDER = "preprocessor_config"
PREPROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True)
class FilterBank:
    """The options of `log_mel` that a checkpoint was trained with, and the clips that go with them.

    Args:
        sample_rate: Hz, of the clips.
        window_s: length of the clips; those with `n_frames` may be shorter, because their spectrograms are
            padded.
        layout: of the spectrogram that the checkpoint itself takes; features are always bins x frames.
        licence, trained_on: of the weights, as far as known.
        n_mels and all after it: see `log_mel`.
    """

    sample_rate: int
    window_s: float
    layout: Literal["bins x frames", "frames x bins"]
    licence: str = "unknown"
    trained_on: str = "unknown"
    n_mels: int
    n_fft: int
    win_length: int
    hop: int
    fmin_hz: float
    fmax_hz: float | None = None
    mel_scale: str
    norm: str = "none"
    frames: str
    log: str
    reference: str = "one"
    top_db: float | None
    n_frames: int | None = None
    pad_with: str = "zero"
    standardise: str = "none"
    mean: float
    std: float

    @property
    def options(self) -> dict[str, Any]:
        """The options of `log_mel`, by name."""
        return {key: getattr(self, key) for key in OPTIONS}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that follow, under their dotted keys."""
        return {
            "data.sample_rate": self.sample_rate,
            "data.window_s": self.window_s,
            "data.highpass_hz": 0.0,
            **{f"features.{key}": value for key, value in self.options.items()},
        }

    def check(self, name: str, options: Mapping[str, Any], sample_rate: int, window_s: float) -> None:
        """Raise ConfigError, with both values, where features or clips differ from this bank, `name`."""
        given = {f"features.{key}": options[key] for key in self.options}
        given |= {"data.sample_rate": sample_rate, "data.window_s": window_s}
        for key, value in given.items():
            own = self.settings[key]
            if value == own or (key == "data.window_s" and self.n_frames and value <= own):
                continue
            most = "at most " if key == "data.window_s" and self.n_frames else ""
            raise ConfigError(
                f"{key} = {value!r}, and the convention {name!r} has {most}{own!r}; leave {key} out, and it "
                f"follows, or set features.convention = {AS_GIVEN!r} and every option of log_mel yourself"
            )


_NO_OPTIONS = ("sample_rate", "window_s", "layout", "licence", "trained_on")
OPTIONS = tuple(field.name for field in fields(FilterBank) if field.name not in _NO_OPTIONS)


def _kaldi(sample_rate: int, **values: Any) -> FilterBank:
    """Return Kaldi's filter bank: 25 ms every 10 ms, HTK's mel scale from 20 Hz, the natural logarithm."""
    win_length = sample_rate * 25 // 1000
    return FilterBank(
        sample_rate=sample_rate,
        layout="frames x bins",
        n_fft=1 << (win_length - 1).bit_length(),
        win_length=win_length,
        hop=sample_rate // 100,
        fmin_hz=20.0,
        mel_scale="kaldi",
        frames="kaldi",
        log="natural",
        top_db=None,
        **values,
    )


# The statistics of AudioSet; the extractors divide by twice the std.
_AUDIOSET = {"mean": -4.2677393, "std": 2 * 4.5689974}

# ASTFeatureExtractor of transformers with its defaults, which the preprocessor_config.json of the checkpoint
# repeats: torchaudio.compliance.kaldi.fbank(window_type="hanning", num_mel_bins=128), zeros up to 1,024
# frames, (x - mean) / (2 std). AudioSet's clips are of 10 s. The licence is that of the model card.
_AST = _kaldi(
    16_000,
    window_s=10.0,
    n_mels=128,
    n_frames=1024,
    **_AUDIOSET,
    licence="BSD-3-Clause",
    trained_on="AudioSet",
)
# The model card of gaunernst/vit_base_patch16_1024_128.audiomae_as2m: kaldi.fbank(audio, htk_compat=True,
# window_type="hanning", num_mel_bins=128), zeros up to 1,024 frames, (x - mean) / (2 std), 16 kHz.
_AUDIOMAE = replace(_AST, licence="CC BY 4.0")
# preprocessor_config.json of DBD-research-group/Bird-MAE-Large: sampling_rate 32000, num_mel_bins 128,
# frame_shift 10, window_type hanning, dither 0, target_length 512, mean -7.2, std 4.43. Two public ports of
# the feature_extractor.py of Bird-MAE-Base have the same values, clips of 5 s, padding with the lowest value
# (of the batch there, of the clip here) and (x - mean) / (2 std).
_BIRD_MAE = _kaldi(
    32_000,
    window_s=5.0,
    n_mels=128,
    n_frames=512,
    pad_with="min",
    mean=-7.2,
    std=2 * 4.43,
    trained_on="xeno-canto, the XCL part of BirdSet",
)
# github.com/DBD-research-group/BirdSet, birdset/modules/models/birdset_models/convnext_bs.py, as on the model
# card: torchaudio's Spectrogram(n_fft=1024, hop_length=320, power=2) and MelScale(n_mels=128,
# sample_rate=32000), whose defaults are HTK's scale without a norm; PowerToDB(top_db=80), whose reference is
# 1 and whose maximum is that of the batch, here of the clip; Normalize(-4.268, 4.569); 5 s.
_BIRDSET_CONVNEXT = FilterBank(
    sample_rate=32_000,
    window_s=5.0,
    layout="bins x frames",
    trained_on="xeno-canto, the XCL part of BirdSet",
    n_mels=128,
    n_fft=1024,
    win_length=1024,
    hop=320,
    fmin_hz=0.0,
    mel_scale="htk",
    frames="centred",
    log="db",
    top_db=80.0,
    mean=-4.268,
    std=4.569,
)
# efficientnet_bs.py in the same folder, and configs/experiment/birdset_neurips24/XCL/efficientnet.yaml: n_fft
# 2048, hop 256, 256 mels, the rest as above. The list on the model card says hop 2048, the code there 256.
_BIRDSET_EFFICIENTNET = replace(_BIRDSET_CONVNEXT, n_mels=256, n_fft=2048, win_length=2048, hop=256)

TABLE: dict[str, FilterBank] = {
    "ast_audioset": _AST,
    "audiomae": _AUDIOMAE,
    "bird_mae": _BIRD_MAE,
    "birdset_convnext": _BIRDSET_CONVNEXT,
    "birdset_efficientnet": _BIRDSET_EFFICIENTNET,
}
"""The filter banks of public checkpoints, by the name that `features.convention` takes."""

CHECKPOINTS = {
    "MIT/ast-finetuned-audioset-10-10-0.4593": "ast_audioset",
    "MIT/ast-finetuned-audioset-16-16-0.442": "ast_audioset",
    "gaunernst/vit_base_patch16_1024_128.audiomae_as2m": "audiomae",
    "gaunernst/vit_base_patch16_1024_128.audiomae_as2m_ft_as20k": "audiomae",
    "DBD-research-group/Bird-MAE-Base": "bird_mae",
    "DBD-research-group/Bird-MAE-Large": "bird_mae",
    "DBD-research-group/Bird-MAE-Huge": "bird_mae",
    "DBD-research-group/ConvNeXT-Base-BirdSet-XCL": "birdset_convnext",
    "DBD-research-group/EfficientNet-B1-BirdSet-XCL": "birdset_efficientnet",
    # Networks of photographs: no filter bank is theirs.
    "google/vit-base-patch16-224-in21k": IMAGES,
    "google/efficientnet-b0": IMAGES,
    "facebook/convnext-tiny-224": IMAGES,
}
"""What the checkpoints of these hub ids were trained on: a row of `TABLE`, or images."""


class Found(NamedTuple):
    """The convention of a checkpoint, and its filter bank; None for a network of images."""

    name: str
    bank: FilterBank | None


def named(convention: str | None) -> FilterBank | None:
    """Return the filter bank of a name of `TABLE`, None for other names; ConfigError for an unknown one."""
    names = (*TABLE, IN_FOLDER, IMAGES, AS_GIVEN)
    if convention is not None and convention not in names:
        raise ConfigError(
            f"unknown features.convention {convention!r}{did_you_mean(convention, names)} (known: "
            f"{', '.join(names)}, or none)"
        )
    return TABLE.get(convention or "")


def convention_of(pretrained: str, *, look_up: bool = True) -> Found | None:
    """Return the convention of a checkpoint, a hub id or a folder; None where it is not known.

    Without `look_up` the hub is not read. Raises ConfigError for a preprocessor_config.json that is damaged.
    """
    if Path(pretrained).is_dir():
        return read_convention(Path(pretrained))
    if pretrained in CHECKPOINTS:
        name = CHECKPOINTS[pretrained]
        return Found(name, TABLE.get(name))
    return _on_the_hub(pretrained) if look_up else None


def is_no_checkpoint(pretrained: str) -> bool:
    """Return whether `pretrained` is a folder without a network; building one refuses it by name."""
    return Path(pretrained).is_dir() and not (Path(pretrained) / "config.json").exists()


def read_convention(folder: Path) -> Found | None:
    """Return what the preprocessor_config.json of a folder says; None without the file, or for other kinds.

    Besides the extractors of AST and Bird-MAE it may be ``{"convention": "birdset_convnext"}``, a name of
    `TABLE`, for checkpoints that come without such a file.
    """
    path = folder / PREPROCESSOR_FILE
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(stated, dict):
        raise ConfigError(f"{str(path)!r} holds no JSON object")
    if "convention" in stated:
        name = stated["convention"]
        if name not in TABLE and name != IMAGES:
            raise ConfigError(
                f"{str(path)!r} says convention = {name!r}; it takes {', '.join(TABLE)} or {IMAGES}"
            )
        return Found(name, TABLE.get(name))
    kind = stated.get("feature_extractor_type") or stated.get("image_processor_type")
    if kind in ("ASTFeatureExtractor", "AudioSpectrogramTransformerFeatureExtractor"):
        return _of_extractor(path, stated, _AST, "max_length")
    if kind == "BirdMAEFeatureExtractor":
        return _of_extractor(path, stated, _BIRD_MAE, "target_length")
    if "image_mean" in stated or "image_processor_type" in stated:
        return Found(IMAGES, None)
    return None


def not_known(setting: str, checkpoint: str, remedy: str) -> ConfigError:
    """Return the error for a checkpoint whose convention is not known."""
    return ConfigError(
        f"the filter bank of {setting} = {checkpoint!r} is not known: it is not in birdtune's table, and no "
        f"{PREPROCESSOR_FILE} of AST or Bird-MAE can be read there; {remedy}"
    )


def _of_extractor(path: Path, stated: Mapping[str, Any], base: FilterBank, length: str) -> Found:
    """Return the bank of a feature extractor, which has the values of `base` where it states none."""
    rate = _number(path, stated, "sampling_rate", int, base.sample_rate)
    n_mels = _number(path, stated, "num_mel_bins", int, base.n_mels)
    n_frames = _number(path, stated, length, int, base.n_frames)
    mean = _number(path, stated, "mean", float, base.mean)
    std = 2 * _number(path, stated, "std", float, base.std / 2)
    if not stated.get("do_normalize", True):
        mean, std = 0.0, 1.0
    bank = _kaldi(
        rate,
        window_s=base.window_s if n_frames == base.n_frames else n_frames / 100,
        n_mels=n_mels,
        n_frames=n_frames,
        pad_with=base.pad_with,
        mean=mean,
        std=std,
    )
    known = [name for name, row in TABLE.items() if row.settings == bank.settings]
    return Found(known[0], TABLE[known[0]]) if known else Found(IN_FOLDER, bank)


def _number(path: Path, stated: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = stated.get(key, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or value != kind(value) or (key != "mean" and value <= 0):
        raise ConfigError(f"{str(path)!r} says {key} = {value!r}, which is not accepted; it takes a number")
    return kind(value)


@functools.lru_cache(maxsize=64)
def _on_the_hub(hub_id: str) -> Found | None:
    # It takes half a second to import.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging as hub

    before = hub.get_verbosity()
    hub.set_verbosity(logging.ERROR)  # it warns of every retry
    try:
        file = hf_hub_download(hub_id, PREPROCESSOR_FILE)
    except Exception:  # of httpx, the hub and the disk, without a common base: no such id or file, no network
        return None
    finally:
        hub.set_verbosity(before)
    return read_convention(Path(file).parent)
