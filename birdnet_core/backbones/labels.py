"""The classifier that a backbone has for the species of a collection, to start a head from."""

from __future__ import annotations

import functools

import numpy as np

from birdnet_core.backbones.base import Backbone
from birdnet_core.backbones.synonyms import label_index
from birdnet_core.errors import ConfigError


@functools.lru_cache(maxsize=4)  # every trial of a search asks, and 6,522 labels are read for each answer
def label_rows(backbone: Backbone, species: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [species, dim] and biases [species] of the backbone's own classifier, not to be changed.

    A species without a label has the mean of those that have one: its logit starts as their average.
    Raises ConfigError for a backbone without a linear layer to labels, or without a label for any species.
    """
    weights, biases = backbone.label_layer()
    places = label_index(species, backbone.convention.labels)
    known = [place for place in places if place is not None]
    if not known:
        raise ConfigError(
            f"model.start = 'labels' needs species that the backbone has a label for, and it has none for "
            f"{', '.join(species[:3])}{', ...' if len(species) > 3 else ''}; take model.start = 'random' "
            "(the study `probe` takes --option labels=false)"
        )
    average = weights[known].mean(axis=0), biases[known].mean()
    rows = [(weights[place], biases[place]) if place is not None else average for place in places]
    return np.stack([row for row, _ in rows]), np.array([bias for _, bias in rows], np.float32)
