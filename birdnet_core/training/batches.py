"""Batches of features from the clips of a dataset, stored or computed, on disk or on the device.

Features are read where they are stored. They are computed on the batch, on the device, from the clips'
waveforms where they are not, or where the waveforms are augmented first; both ways give the same features
within the rounding of the stores.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from birdnet_core.build import build_feature
from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, standardised
from birdnet_core.errors import DataError
from birdnet_core.training.memory import is_out_of_memory

log = logging.getLogger(__name__)

# Values stay on the GPU when they take no more than this share of what the process may take of it, and are
# taken to stay in the page cache when they take no more than this share of the machine's memory.
RESIDENT_SHARE = 0.5
PREFETCHED = 2
# The most that the embeddings of a dataset may take of a process's memory, as float32.
HELD_BYTES = 2**28
SCORING_BATCH = 128  # clips a forward pass, where no gradients are kept


@dataclass(frozen=True)
class Raw:
    """A batch as it is stored: int16 values [batch, ...], their scale and offset, and the classes [batch].

    Of embeddings that are held, float32 values as they are trained on.
    """

    values: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    classes: torch.Tensor


class ClipBatches:
    """The clips of some splits of a dataset, a batch at a time on `device`.

    Args:
        splits: of ``train``, ``val`` and ``test``.
        is_computed: compute features from waveforms, through `waveform_augmentations`; else read them.
        is_resident: hold all values on the device, where a batch is an index select; else they stay mapped
            from disk, shared by all trials of the machine. On the CPU, embeddings of up to `HELD_BYTES` are
            held by the dataset instead (`Dataset.embeddings`): reading and scaling them would take half of an
            epoch of a linear head.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        splits: Sequence[str],
        device: torch.device,
        *,
        is_computed: bool,
        is_resident: bool,
        waveform_augmentations: Sequence[nn.Module] = (),
    ) -> None:
        chosen = dataset.rows(*splits)
        rows = dataset.in_store[chosen]
        self.device = device
        self.scored_ids = dataset.scored_ids[chosen]
        self.labels = torch.from_numpy(dataset.labels[chosen]).long()
        self.mean, self.std = (
            over_channels(torch.from_numpy(x)[None], dataset.input_shape).to(device)
            for x in (dataset.mean, dataset.std)
        )
        self.input_shape = dataset.input_shape
        self.augmentations = waveform_augmentations
        self.feature: nn.Module | None = None
        if is_computed:
            clips = dataset.clips
            self.feature = build_feature(config.features, clips.sample_rate, clips.samples.shape[1]).to(
                device
            )
            self.values = clips.samples
            scale = clips.windows["scale"][rows, None]
            offset = np.zeros_like(scale)
        else:
            assert dataset.features is not None
            self.values = dataset.features.values
            scale, offset = dataset.features.scale[rows], dataset.features.offset[rows]
        self.rows = rows
        self.scale, self.offset = (torch.from_numpy(np.array(x)) for x in (scale, offset))
        self.resident: torch.Tensor | None = None
        self.held: torch.Tensor | None = None
        n_bytes = 4 * len(dataset.in_store) * dataset.input_shape[0]
        is_embedding = len(dataset.input_shape) == 1
        if is_embedding and not is_computed and device.type == "cpu" and n_bytes <= HELD_BYTES:
            self.held, self.chosen = dataset.embeddings, torch.from_numpy(chosen)
        elif is_resident:
            self.resident = torch.from_numpy(self.values[rows]).to(device)
            self.scale, self.offset = self.scale.to(device), self.offset.to(device)
        # `labels` stay in memory, where the order of an epoch is drawn.
        self.classes = self.labels if self.resident is None else self.labels.to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, index: torch.Tensor) -> Raw:
        """Return the stored values of positions `index`, on the device if resident, else in memory.

        `index` is where the values are, see `placed`.
        """
        if self.held is not None:
            held = self.held.index_select(0, self.chosen[index])
            return Raw(held, self.scale[:0], self.offset[:0], self.classes[index])
        if self.resident is not None:
            return Raw(self.resident[index], self.scale[index], self.offset[index], self.classes[index])
        # np.take lets other threads run while pages come from disk; indexing a mapped array does not.
        values = torch.from_numpy(np.take(self.values, self.rows[index.numpy()], axis=0))
        batch = (values, self.scale[index], self.offset[index], self.classes[index])
        if self.device.type == "cuda":
            batch = tuple(part.pin_memory() for part in batch)  # type: ignore[assignment]
        return Raw(*batch)

    def placed(self, order: torch.Tensor) -> torch.Tensor:
        """Return positions where `raw` takes them: on the device, if the values are resident.

        Once an epoch, since the GPU would be waited for at every batch.
        """
        return order if self.resident is None else order.to(self.device)

    def features(
        self, raw: Raw, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 [batch, channels, bins, frames] or [batch, dim], and classes [batch], on the device.

        With a `generator`, waveforms are augmented on the way; without, nothing is.
        """
        if self.held is not None:
            return raw.values, raw.classes
        values, scale, offset, classes = (
            part.to(self.device, non_blocking=True)
            for part in (raw.values, raw.scale, raw.offset, raw.classes)
        )
        if self.feature is not None:
            waveforms = values * scale
            if generator is not None:
                for augmentation in self.augmentations:
                    waveforms = augmentation(waveforms, generator)
            with torch.no_grad():
                features = (self.feature(waveforms) - self.mean) / self.std
            return features, classes
        scale, offset = (over_channels(x, self.input_shape) for x in (scale, offset))
        return standardised(values, scale, offset, self.mean, self.std), classes

    def in_order(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield features and classes of all clips, in the order of the dataset and without augmentation."""
        for raw in self.batches(self.placed(torch.arange(len(self))).split(batch_size)):
            yield self.features(raw)

    def class_means(self, n_classes: int) -> torch.Tensor:
        """Return the mean features [classes, *input_shape] of every class; nan where it has no clips."""
        totals = torch.zeros(n_classes, *self.input_shape, device=self.device)
        for features, classes in self.in_order(SCORING_BATCH):
            totals.index_add_(0, classes, features)
        counts = torch.bincount(self.labels.to(self.device), minlength=n_classes)
        return totals / over_channels(counts[:, None], self.input_shape)

    def batches(self, indices: Iterable[torch.Tensor]) -> Iterator[Raw]:
        """Yield the stored values of each of `indices`.

        For a GPU, and from a store too large to stay in the page cache, the next ones are read while one is
        worked on; elsewhere a thread that reads ahead would only take turns with those that train.
        """
        n_bytes = self.values[:1].nbytes * len(self)
        is_prefetched = self.device.type == "cuda" or n_bytes > RESIDENT_SHARE * memory_size()
        if self.held is not None or self.resident is not None or not is_prefetched:
            yield from map(self.raw, indices)
            return
        with ThreadPoolExecutor(1) as reader:
            waiting = []
            for index in indices:
                waiting.append(reader.submit(self.raw, index))
                if len(waiting) > PREFETCHED:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()


def over_channels(values: torch.Tensor, input_shape: tuple[int, ...]) -> torch.Tensor:
    """Return `values` [batch, channels] as they apply to features [batch, *input_shape]."""
    return values.reshape(*values.shape, *[1] * (len(input_shape) - 1))


def train_and_val_clips(
    config: TrainConfig, dataset: Dataset, device: torch.device, waveform_augmentations: Sequence[nn.Module]
) -> tuple[ClipBatches, ClipBatches | None]:
    """Return the clips to train on and those to validate on, None where validation is trained on too.

    Raises DataError where `runtime.features` asks for stored features and the dataset has none.
    """
    wanted = config.runtime.features
    if wanted == "stored" and dataset.features is None:
        raise DataError("runtime.features = 'stored', but the dataset was prepared without features")
    is_computed = wanted == "computed" or dataset.features is None
    is_train_computed = is_computed or bool(waveform_augmentations)
    n_bytes = 0
    if dataset.features is not None and not is_computed:
        n_bytes += dataset.features.values[:1].nbytes * len(dataset.in_store)
    if is_train_computed:
        n_bytes += dataset.clips.samples[:1].nbytes * len(dataset.in_store)

    def made(is_resident: bool) -> tuple[ClipBatches, ClipBatches | None]:
        train = ClipBatches(
            config,
            dataset,
            config.training.train_splits,
            device,
            is_computed=is_train_computed,
            is_resident=is_resident,
            waveform_augmentations=waveform_augmentations,
        )
        if not config.training.is_validated:
            return train, None
        val = ClipBatches(config, dataset, ("val",), device, is_computed=is_computed, is_resident=is_resident)
        return train, val

    if fits_on(device, n_bytes):
        try:
            return made(is_resident=True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Others took the memory meanwhile. The batches are then read from disk.
            log.warning("the GPU has no room for the clips: they are read from disk, batch by batch")
    return made(is_resident=False)


def epoch_order(labels: torch.Tensor, sampling: str, generator: torch.Generator) -> torch.Tensor:
    """Return the positions of an epoch, as many as there are `labels` [clips], in a random order.

    ``instance`` has each clip once. The others draw with replacement, a clip of a class of n clips with
    probability proportional to 1/n (``class_balanced``) or 1/sqrt(n) (``square_root``; Kang et al. 2020).
    """
    if sampling == "instance":
        return torch.randperm(len(labels), generator=generator)
    power = {"class_balanced": 1.0, "square_root": 0.5}[sampling]
    weights = torch.bincount(labels).double()[labels] ** -power
    return torch.multinomial(weights, len(labels), replacement=True, generator=generator)


def memory_size() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fits_on(device: torch.device, n_bytes: int) -> bool:
    """Return whether `n_bytes` may live on `device`: a GPU with enough memory for this process.

    It has what is free, but not beyond its cap (`torch.cuda.set_per_process_memory_fraction`).
    """
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    cap = torch.cuda.get_per_process_memory_fraction(device) * total
    room = min(free, cap - torch.cuda.memory_allocated(device))
    return bool(n_bytes <= RESIDENT_SHARE * room)
