"""What a model has to beat: classifiers that are fitted in seconds, and a backbone's own species.

None of them is tuned. Each is a function that returns probabilities [recordings, classes] of a split, with
the windows of a recording averaged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from birdnet_core.backbones.base import Backbone
from birdnet_core.backbones.synonyms import label_index
from birdnet_core.config import TrainConfig
from birdnet_core.data.building import Progress, no_progress
from birdnet_core.data.dataset import Dataset
from birdnet_core.training.batches import SCORING_BATCH, ClipBatches
from birdnet_core.training.metrics import average_windows

LOGISTIC_REGRESSION = "logistic regression"
NEAREST_NEIGHBOURS = "k-nearest neighbours"
ZERO_SHOT = "zero-shot"
N_NEIGHBOURS = 5


def logistic_regression(
    config: TrainConfig, dataset: Dataset, train_splits: tuple[str, ...], split: str
) -> np.ndarray:
    """Return probabilities [recordings, classes] by scikit-learn's logistic regression (C = 1).

    Its inputs are embeddings as they are, and of spectrograms the mean and the std over time of every bin;
    they are standardised over the clips of `train_splits`, which it is fitted on.
    """
    from sklearn.linear_model import LogisticRegression

    return _fitted(LogisticRegression(max_iter=5000), config, dataset, train_splits, split)


def nearest_neighbours(
    config: TrainConfig, dataset: Dataset, train_splits: tuple[str, ...], split: str
) -> np.ndarray:
    """Return probabilities [recordings, classes] by the 5 training clips of the highest cosine similarity.

    The inputs are those of `logistic_regression`. Each neighbour has one vote, and one more is spread over
    all classes, so that none has a probability of 0: (votes + 1 / classes) / 6. k = 5 is scikit-learn's
    default, lowered only where there are fewer training clips. The clips of the rarest class do not lower
    it: of a class with a single clip, k would be 1, and every probability near 0 or 1/2.
    """
    from sklearn.neighbors import KNeighborsClassifier

    k = min(N_NEIGHBOURS, len(dataset.rows(*train_splits)))
    neighbours = KNeighborsClassifier(k, metric="cosine")
    shares = _fitted(neighbours, config, dataset, train_splits, split)
    smoothed: np.ndarray = (k * shares + 1 / shares.shape[1]) / (k + 1)
    return smoothed


def zero_shot(
    backbone: Backbone, dataset: Dataset, split: str, progress: Progress = no_progress
) -> np.ndarray:
    """Return probabilities [recordings, classes] by the backbone's own labels: nothing is trained.

    The softmax, over the classes, of the logits of their labels (`synonyms.label_index`). A class without a
    label has the probability 0. The backbone runs on every window of the split; `progress` counts them.
    """
    labels = label_index(dataset.species, backbone.convention.labels)
    known = [c for c, label in enumerate(labels) if label is not None]
    places = [label for label in labels if label is not None]
    rows = dataset.rows(split)
    windows = np.zeros((len(rows), len(dataset.species)))
    for first in range(0, len(rows), SCORING_BATCH):
        some = slice(first, first + SCORING_BATCH)
        logits = torch.from_numpy(backbone.label_logits(dataset.waveforms(rows[some]).numpy())[:, places])
        windows[some, known] = torch.softmax(logits.double(), dim=1).numpy()
        progress(ZERO_SHOT, min(some.stop, len(rows)), len(rows))
    return average_windows(windows, dataset.scored_ids[rows])[0]


def without_label(backbone: Backbone, dataset: Dataset) -> list[str]:
    """Return the species of `dataset` that the backbone has no label for, and never predicts zero-shot."""
    labels = label_index(dataset.species, backbone.convention.labels)
    return [name for name, label in zip(dataset.species, labels, strict=True) if label is None]


def clips_of(
    config: TrainConfig, dataset: Dataset, splits: tuple[str, ...], device: torch.device
) -> ClipBatches:
    """Return the clips of `splits`, with features as they are stored, or computed where they are not."""
    is_computed = dataset.features is None
    return ClipBatches(config, dataset, splits, device, is_computed=is_computed, is_resident=False)


def _fitted(
    classifier: Any, config: TrainConfig, dataset: Dataset, train_splits: tuple[str, ...], split: str
) -> np.ndarray:
    """Return probabilities [recordings, classes] of a classifier of scikit-learn on standardised inputs."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cpu = torch.device("cpu")
    train, scored = (clips_of(config, dataset, splits, cpu) for splits in (train_splits, (split,)))
    fitted = make_pipeline(StandardScaler(), classifier)
    fitted.fit(_inputs(train), train.labels.numpy())
    windows = np.zeros((len(scored), len(dataset.species)))
    windows[:, fitted.classes_] = fitted.predict_proba(_inputs(scored))
    return average_windows(windows, scored.scored_ids)[0]


def _inputs(clips: ClipBatches) -> np.ndarray:
    """Return embeddings [clips, dim], or mean and std over time, [clips, 2 * channels * bins]."""
    parts = []
    for features, _ in clips.in_order(SCORING_BATCH):
        if features.ndim == 4:
            bins = features.flatten(1, 2)
            features = torch.cat([bins.mean(dim=2), bins.std(dim=2, correction=0)], dim=1)
        parts.append(features.numpy())
    return np.concatenate(parts)
