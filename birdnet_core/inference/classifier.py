"""Predict the species of audio files of any length with the model of a model folder.

    classifier = Classifier.load("model/")
    frame = classifier.predict(["dawn.wav"], overlap_s=1.0)

Training uses the most active windows of a recording; prediction uses all of them, one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from birdnet_core.build import build_feature
from birdnet_core.data.windows import Window
from birdnet_core.errors import ConfigError, DataError
from birdnet_core.inference.calibration import tempered
from birdnet_core.inference.model_folder import Model, read_model
from birdnet_core.inference.streaming import Ended, Place, batches_of_windows, collected, no_recording_read
from birdnet_core.training.batches import over_channels
from birdnet_core.training.device import choose_kernels, layout_of, logits_of, pick_device, pick_precision

BATCH_SIZE = 32


@dataclass(frozen=True)
class WindowScores:
    """Probabilities [windows, classes] of some windows, and the file, start and end of each.

    `n_read` counts the files that were read so far, with the present one as its share.
    """

    files: list[str]
    start_s: np.ndarray
    end_s: np.ndarray
    probabilities: np.ndarray
    n_read: float

    def table(self, species: Sequence[str], top_k: int) -> pd.DataFrame:
        """Return a row for each of the `top_k` most probable species of every window."""
        place = {"file": self.files, "start_s": self.start_s.round(3), "end_s": self.end_s.round(3)}
        return ranked(place, self.probabilities, species, top_k)


class Classifier:
    """A model on a device, ready to score recordings in the precision that it was validated in."""

    def __init__(self, model: Model, device: str = "auto") -> None:
        self.model = model
        config = model.config.override({"runtime.device": device})
        self.device = pick_device(config.runtime)
        self.precision = pick_precision(config.training.precision, self.device)
        choose_kernels(self.device, self.precision, deterministic=config.runtime.deterministic)
        layout = layout_of(self.precision)
        self.networks = [
            network.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]
            for network in model.networks()
        ]
        data = config.data
        self.feature = build_feature(config.features, data.sample_rate, data.n_samples).to(self.device)
        self.mean, self.std = (
            over_channels(torch.tensor([values], device=self.device), model.input_shape)
            for values in (model.mean, model.std)
        )

    @classmethod
    def load(cls, folder: Place, *, device: str = "auto", weights: str | None = None) -> Classifier:
        """Return the model in `folder` on ``auto``, ``cpu`` or ``cuda``.

        `weights` is where the weights of a backbone of embeddings are, by default where they were in
        training; others than those are refused, by their hash. Raises ModelFolderError for a folder that
        cannot be used, and ConfigError for a GPU that is not there.
        """
        return cls(read_model(folder, weights=weights), device)

    @property
    def species(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.model.species

    def predict(
        self,
        paths: Place | Iterable[Place],
        *,
        overlap_s: float = 0.0,
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
    ) -> pd.DataFrame:
        """Return file, start_s, end_s, rank from 1, species and probability of every window of `paths`.

        `paths` are files, or folders that are searched for audio. A file that cannot be read to its end is
        logged with the reason, and its windows before the fault are kept. Windows of digital silence have no
        rows. Raises DataError where no file gave a window.
        """
        faults: list[Ended] = []
        tables = [
            scores.table(self.species, top_k)
            for scores in self.stream(
                paths, overlap_s=overlap_s, batch_size=batch_size, on_end=collected(faults)
            )
        ]
        if not tables:
            raise DataError(no_recording_read(faults))
        return pd.concat(tables, ignore_index=True)

    def predict_recordings(
        self,
        paths: Place | Iterable[Place],
        *,
        overlap_s: float = 0.0,
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
    ) -> pd.DataFrame:
        """Return file, n_windows, rank from 1, species and probability of every recording of `paths`.

        As in validation, the members' probabilities are averaged over all windows; the temperature comes
        last. A file that cannot be read to its end is logged and has no rows. Raises DataError where none is
        left.
        """
        faults: list[Ended] = []
        totals: dict[str, np.ndarray] = {}
        counts: Counter[str] = Counter()
        for scores in self._stream(paths, overlap_s, batch_size, collected(faults)):
            for file, probabilities in zip(scores.files, scores.probabilities, strict=True):
                totals[file] = totals.get(file, 0) + probabilities
                counts[file] += 1
        for ended in faults:
            totals.pop(ended.file, None)
        if not totals:
            raise DataError(no_recording_read(faults))
        means = np.stack([total / counts[file] for file, total in totals.items()])
        place = {"file": list(totals), "n_windows": [counts[file] for file in totals]}
        return ranked(place, tempered(means, self.model.temperature), self.species, top_k)

    def stream(
        self,
        paths: Place | Iterable[Place],
        *,
        overlap_s: float = 0.0,
        batch_size: int = BATCH_SIZE,
        on_end: Callable[[Ended], None] | None = None,
    ) -> Iterator[WindowScores]:
        """Yield the scores of all windows of `paths` in order, a batch at a time, however long they are.

        `on_end` is called after each file, before the batch that holds its last windows comes; without it,
        faults are logged.
        """
        for scores in self._stream(paths, overlap_s, batch_size, on_end or collected([])):
            yield replace(scores, probabilities=tempered(scores.probabilities, self.model.temperature))

    def _stream(
        self,
        paths: Place | Iterable[Place],
        overlap_s: float,
        batch_size: int,
        on_end: Callable[[Ended], None],
    ) -> Iterator[WindowScores]:
        """Yield scores without the temperature."""
        for waiting, n_read in batches_of_windows(
            paths, self.model.config.data, overlap_s, batch_size, on_end
        ):
            yield self._scored(waiting, n_read)

    def _scored(self, batch: Sequence[tuple[str, Window]], n_read: float) -> WindowScores:
        waveforms = torch.stack([window.samples for _, window in batch])
        return WindowScores(
            files=[file for file, _ in batch],
            start_s=np.array([window.start_s for _, window in batch]),
            end_s=np.array([window.end_s for _, window in batch]),
            probabilities=self.probabilities(waveforms),
            n_read=n_read,
        )

    @torch.inference_mode()
    def probabilities(self, waveforms: torch.Tensor) -> np.ndarray:
        """Return the mean of the members' probabilities [windows, classes], without the temperature.

        `waveforms` [windows, samples] are resampled and high-passed, as the windows of a dataset are.
        """
        features = (self.feature(waveforms.to(self.device)) - self.mean) / self.std
        of_members = [
            torch.softmax(logits_of(network, features, self.precision).double(), dim=1)
            for network in self.networks
        ]
        mean: np.ndarray = torch.stack(of_members).mean(0).cpu().numpy()
        return mean


def ranked(
    place: Mapping[str, Any], probabilities: np.ndarray, species: Sequence[str], top_k: int
) -> pd.DataFrame:
    """Return a row for each of the `top_k` most probable species of every row of `probabilities`.

    The columns are those of `place`, one value a row of `probabilities` [rows, classes], then rank from 1,
    species and probability. Equal probabilities keep the order of the classes.
    """
    if top_k < 1:
        raise ConfigError(f"top_k = {top_k} is not accepted; it takes 1 or more")
    top_k = min(top_k, len(species))
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return pd.DataFrame(
        {
            **{name: np.repeat(np.asarray(values), top_k) for name, values in place.items()},
            "rank": np.tile(np.arange(1, top_k + 1), len(best)),
            "species": np.asarray(species, dtype=object)[best.ravel()],
            "probability": np.take_along_axis(probabilities, best, axis=1).ravel(),
        }
    )
