"""The recordings of a dataset that its frozen backbone may have been trained on.

Scores on such recordings may be too high for new ones. What a backbone knows of them is `Backbone.seen`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, scored_rows
from birdnet_core.data.manifest import SPLITS
from birdnet_core.features.embedding import opened
from birdnet_core.records.seen import SEEN


@dataclass(frozen=True)
class Seen:
    """What a backbone may have seen of the recordings, or clips, that a dataset scores.

    Args:
        backbone, weights_hash, trained_on: the backbone, and its training in words.
        scored: ``recordings``, or ``clips`` where these were split at random.
        status: a word of `records.seen.SEEN` for each, in the order of `dataset.scored_rows`.
        splits: the split of each.
    """

    backbone: str
    weights_hash: str
    trained_on: str
    scored: str
    status: np.ndarray
    splits: np.ndarray

    def counts(self) -> dict[str, dict[str, int]]:
        """Return for each split how many there are of every status."""
        return {split: {status: int((self.of(split) == status).sum()) for status in SEEN} for split in SPLITS}

    def of(self, split: str) -> np.ndarray:
        """Return the status of each that is scored in `split`, in the order of their predictions."""
        found: np.ndarray = self.status[self.splits == split]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the backbone and the counts, for JSON."""
        return {
            "backbone": self.backbone,
            "weights_hash": self.weights_hash,
            "trained_on": self.trained_on,
            "scored": self.scored,
            "counts": self.counts(),
        }


def seen_before(manifest: pd.DataFrame, dataset: Dataset, config: TrainConfig) -> Seen | None:
    """Return what the backbone of `config` may have seen of `dataset`, made of `manifest`.

    None for features without a backbone.
    """
    options = config.features.kwargs
    if "backbone" not in options:
        return None
    backbone = opened(options["backbone"], options["weights"])
    scored = scored_rows(manifest, dataset.folder)
    return Seen(
        options["backbone"],
        backbone.weights_hash,
        backbone.convention.trained_on,
        dataset.facts["scored"],
        backbone.seen(scored, dataset.facts["split_id"]),
        scored["split"].to_numpy(),
    )
