"""The penultimate layer of a model that birdtune trained: needs nothing but its folder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from birdnet_core.backbones.base import Backbone, Convention, hash_of
from birdnet_core.build import build_feature
from birdnet_core.errors import ConfigError, ModelFolderError
from birdnet_core.inference.model_folder import MODEL_FILE, read_model
from birdnet_core.records.seen import NOT_SEEN, POSSIBLY_SEEN, UNKNOWN
from birdnet_core.registry import backbones


@backbones.register("birdtune")
class Birdtune(Backbone):
    """A model folder of birdtune: the input of the last linear layer of its first member.

    `weights` is the folder that `birdtune train` wrote. Windows and features are those of its training.
    """

    has_label_layer = True

    def __init__(self, weights: str) -> None:
        if not weights:
            raise ConfigError(
                "the backbone 'birdtune' takes features.weights, the model folder that `birdtune train` wrote"
            )
        try:
            self.model = read_model(weights)
        except ModelFolderError as error:
            raise ConfigError(f"features.weights of the backbone 'birdtune': {error}") from None
        # model.json names the hash of every other file of the folder.
        self.weights_hash = hash_of(Path(weights) / MODEL_FILE)
        network = self.model.networks()[0]
        layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
        if not layers or layers[-1].out_features != len(self.model.species):
            raise ConfigError(
                f"the model {weights!r} has no linear layer at its end to take embeddings before; train a "
                "model other than 'prototype'"
            )
        self.network, self.last = network, layers[-1]
        data = self.model.config.data
        self.convention = Convention(
            sample_rate=data.sample_rate,
            window_s=data.window_s,
            highpass_hz=data.highpass_hz,
            dim=self.last.in_features,
            inputs=f"{self.model.config.features.name} features, as in its training",
            output="the input of its last linear layer",
            licence="as its owner decides",
            source=f"a model of birdtune, {self.model.config.model.name}",
            trained_on="the recordings of its training; see its model card",
            labels=self.model.species,
        )

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        return self._run(waveforms)[0]

    def label_logits(self, waveforms: np.ndarray) -> np.ndarray:
        return self._run(waveforms)[1]

    def label_layer(self) -> tuple[np.ndarray, np.ndarray]:
        weights = self.last.weight.detach().numpy()
        biases = torch.zeros(len(weights)) if self.last.bias is None else self.last.bias.detach()
        return weights, biases.numpy()

    def seen(self, recordings: pd.DataFrame, split_id: str) -> np.ndarray:
        """Return possibly seen for the splits that the model was trained on, if it was trained on this split.

        Of another split the model folder names no recordings: unknown. So are the other splits of a model
        that began with weights of others.
        """
        if self.model.provenance.get("split_id") != split_id:
            return np.full(len(recordings), UNKNOWN, dtype=object)
        config = self.model.config
        is_trained = recordings["split"].isin(config.training.train_splits)
        # A recording whose clips are split at random may be in several splits.
        is_seen = is_trained.groupby(recordings["path"]).transform("any")
        is_whole_story = self.model.checkpoint is None and "backbone" not in config.features.kwargs
        return np.where(is_seen, POSSIBLY_SEEN, NOT_SEEN if is_whole_story else UNKNOWN).astype(object)

    @functools.cached_property
    def _feature(self) -> nn.Module:
        data = self.model.config.data
        return build_feature(self.model.config.features, data.sample_rate, data.n_samples)

    @torch.inference_mode()
    def _run(self, waveforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = self._feature(torch.from_numpy(np.asarray(waveforms, np.float32)))
        shape = (1, -1) + (1,) * (features.ndim - 2)
        mean, std = (torch.tensor(v).view(shape) for v in (self.model.mean, self.model.std))
        inputs: list[torch.Tensor] = []

        def keep(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            inputs.append(given[0])

        hook = self.last.register_forward_pre_hook(keep)
        try:
            logits = self.network((features - mean) / std)
        finally:
            hook.remove()
        return inputs[0].flatten(1).numpy(), logits.numpy()
