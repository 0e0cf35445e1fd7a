"""A dataset of embeddings, on which heads train in no time."""

import dataclasses

import numpy as np
import pytest
import torch

from birdnet_core.data.feature_store import FeatureStore, quantised


@pytest.fixture
def embeddings(small_dataset):
    """The clips of the small dataset with random embeddings of 16 values."""
    n_rows = len(small_dataset.features.values)
    rng = np.random.default_rng(0)
    values, scale, offset = quantised(torch.from_numpy(rng.gamma(2.0, size=(n_rows, 16)).astype(np.float32)))
    store = small_dataset.features
    return dataclasses.replace(
        small_dataset,
        features=FeatureStore(store.folder, values.numpy(), scale.numpy(), offset.numpy(), store.clip_ids),
        input_shape=(16,),
        mean=rng.uniform(1, 3, 16).astype(np.float32),
        std=rng.uniform(1, 2, 16).astype(np.float32),
    )
