"""Networks of sounds from the Hugging Face hub or a folder, which transformers runs."""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from birdnet_core import conventions, registry
from birdnet_core.backbones.base import HASH_DIGITS, Backbone, Convention, hash_of
from birdnet_core.build import build_feature
from birdnet_core.config import component
from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.models.pretrained import is_of_the_network, loaded, reading
from birdnet_core.records.files import read_json

NAME = "transformers"
# By the model_type of a config.json: the class, what its own pooling is, and where its config has the size.
KINDS: dict[str, tuple[str, str, str]] = {
    "audio-spectrogram-transformer": (
        "ASTModel",
        "its own pooled output: the mean of its two tokens after the last layer norm",
        "hidden_size",
    ),
    "convnext": (
        "ConvNextModel",
        "its own pooled output: the mean over the last feature map, layer-normalised",
        "hidden_sizes",
    ),
    "efficientnet": (
        "EfficientNetModel",
        "its own pooled output: the mean over the last feature map",
        "hidden_dim",
    ),
}
FILES = ("config.json", conventions.PREPROCESSOR_FILE, "*.safetensors", "model.safetensors.index.json")
WINDOWS_AT_ONCE = 8


@registry.backbones.register(NAME)
class Transformers(Backbone):
    """AST, ConvNeXt or EfficientNet of sounds, from the Hugging Face hub or a folder.

    `weights` is the hub id, or the folder with config.json and safetensors; no code of a checkpoint runs, and
    no pickle is read. Clips and filter bank are those of the checkpoint: by its hub id, or by the
    preprocessor_config.json in its folder, see docs/backbones.md. The embedding is the network's own pooled
    output.
    """

    def __init__(self, weights: str) -> None:
        if not weights:
            raise ConfigError(
                f"the backbone {NAME!r} takes features.weights, the hub id or the folder of a checkpoint"
            )
        self.weights = weights
        self.folder = _folder_of(weights)
        files = self._safetensors()
        stated = self._config()
        name, bank = self._filter_bank()
        self.bank = bank
        own = self.config.get("num_mel_bins", bank.n_mels), self.config.get("max_length", bank.n_frames)
        if self.kind == "audio-spectrogram-transformer" and own != (bank.n_mels, bank.n_frames):
            raise ConfigError(
                f"{self._fault}: its config.json has num_mel_bins, max_length = {own[0]}, {own[1]}, and the "
                f"convention {name!r} has {bank.n_mels}, {bank.n_frames}"
            )
        dim = stated[KINDS[self.kind][2]]
        is_public = weights in conventions.CHECKPOINTS
        self.convention = Convention(
            sample_rate=bank.sample_rate,
            window_s=bank.window_s,
            dim=dim[-1] if isinstance(dim, list) else dim,
            inputs=f"the log-mel spectrogram of the convention {name!r}",
            output=KINDS[self.kind][1],
            licence=bank.licence if is_public else "unknown",
            source=f"the checkpoint {weights}",
            trained_on=bank.trained_on if is_public else "unknown",
        )
        # What the embeddings depend on: weights, network and filter bank.
        parts = [hash_of(file) for file in (*files, self.folder / "config.json")]
        text = "\n".join([*parts, repr(sorted(bank.settings.items()))])
        self.weights_hash = hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]

    @torch.inference_mode()
    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        clips = torch.from_numpy(np.asarray(waveforms, np.float32))
        return torch.cat([self._pooled(some) for some in clips.split(WINDOWS_AT_ONCE)]).numpy()

    def _pooled(self, clips: torch.Tensor) -> torch.Tensor:
        spectrogram = self._feature(clips)
        if self.kind == "audio-spectrogram-transformer":
            spectrogram = spectrogram[:, 0].transpose(1, 2)
        else:
            if self.bank.layout == "frames x bins":
                spectrogram = spectrogram.transpose(2, 3)
            spectrogram = spectrogram.expand(-1, self.config.get("num_channels", 3), -1, -1)
        pooled: torch.Tensor = self._network(spectrogram).pooler_output
        return pooled.flatten(1)

    @functools.cached_property
    def _feature(self) -> nn.Module:
        n_samples = round(self.bank.window_s * self.bank.sample_rate)
        chosen = component(registry.features, "log_mel", self.bank.options)
        return build_feature(chosen, self.bank.sample_rate, n_samples)

    @functools.cached_property
    def _network(self) -> nn.Module:
        import transformers  # it takes seconds

        network: Any = getattr(transformers, KINDS[self.kind][0])
        with reading(self._fault, self.kind):
            config = network.config_class.from_dict(dict(self.config))
            return loaded(network, str(self.folder), config).eval()

    @property
    def _fault(self) -> str:
        return f"the backbone {NAME!r} cannot use {self.weights!r}"

    @property
    def kind(self) -> str:
        """The model_type of the checkpoint."""
        return str(self.config["model_type"])

    def _safetensors(self) -> list[Path]:
        """Return the files of weights, after a look at their headers."""
        from safetensors import safe_open

        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            pickles = sorted(file.name for file in self.folder.glob("*.bin"))
            only = f", only {pickles[0]}, a pickle, which is never read" if pickles else ""
            raise ConfigError(
                f"{self._fault}: it holds no safetensors{only}; load it with the code of its authors, and "
                "save it by `save_pretrained`"
            )
        with reading(self._fault, ", ".join(KINDS)):
            for file in files:
                with safe_open(file, "pt"):
                    pass
        return files

    def _config(self) -> dict[str, Any]:
        """Read config.json, and return it with the values that it leaves out."""
        try:
            stated = read_json(self.folder / "config.json")
        except RunFolderError as error:
            raise ConfigError(f"{self._fault}: {error}") from None
        self.config = {key: value for key, value in dict(stated).items() if is_of_the_network(key)}
        kind = self.config.get("model_type")
        sizes = KINDS[kind][2] if kind in KINDS else ""
        if sizes not in self.config:
            code = "; code of a checkpoint is never run" if "auto_map" in stated else ""
            raise ConfigError(
                f"{self._fault}: its config.json says model_type = {kind!r}, and it takes "
                f"{', '.join(KINDS)}{code}"
            )
        return self.config

    def _filter_bank(self) -> tuple[str, conventions.FilterBank]:
        found = conventions.convention_of(self.weights, look_up=False)
        found = found or conventions.read_convention(self.folder)
        if found is None:
            raise conventions.not_known(
                "features.weights",
                self.weights,
                f"write {conventions.PREPROCESSOR_FILE} into its folder: that of the checkpoint it was made "
                f'from, or {{"convention": NAME}} with one of {", ".join(conventions.TABLE)}',
            )
        if found.bank is None:
            raise ConfigError(f"{self._fault}: it is a network of photographs, which has no filter bank")
        return found.name, found.bank


def _folder_of(weights: str) -> Path:
    """Return the folder of a checkpoint; one of the hub is downloaded where it has not been before."""
    if Path(weights).is_dir():
        return Path(weights)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging as hub

    reason, before = "", hub.get_verbosity()
    for is_local in (True, False):
        hub.set_verbosity(logging.ERROR)  # it warns of every retry
        try:
            folder = Path(snapshot_download(weights, allow_patterns=[*FILES], local_files_only=is_local))
        except Exception as error:  # of httpx, the hub and the disk, without a common base
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            continue
        finally:
            hub.set_verbosity(before)
        if not is_local or any(folder.glob("*.safetensors")):
            return folder
    raise ConfigError(
        f"features.weights = {weights!r} of the backbone {NAME!r} is no folder, and cannot be read from the "
        f"hub: {reason}; connect to the network for its first use, or give the folder of a checkpoint"
    )
