"""One training run: a `Session` that learns an epoch at a time, and `train`, which runs it to the end.

The cluster runs the same `Session` that `train` does, so a trial replayed alone gives the same numbers: on
the CPU to the last digit, for equal `runtime.threads`.
"""

from __future__ import annotations

import math
import random
import resource
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from birdnet_core.build import build, count_parameters
from birdnet_core.config import RuntimeConfig, TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import ConfigError, DataError, TrialDiverged
from birdnet_core.metrics import average_windows, f1_per_class, score
from birdnet_core.optim import learning_rate
from birdnet_core.records import Status, TrialRecord, is_better, metric_direction, provenance, write_json

SCORING_BATCH = 128
# Features stay on the GPU when they take no more than this share of its free memory.
RESIDENT_SHARE = 0.5


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pick_device(runtime: RuntimeConfig) -> torch.device:
    """Return the device that ``auto`` stands for here; raises ConfigError for a GPU that is not there."""
    has_gpu = torch.cuda.is_available()
    if runtime.device == "cuda" and not has_gpu:
        raise ConfigError("runtime.device = 'cuda', but torch finds no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if has_gpu and runtime.device != "cpu" else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bf16 natively: a GPU, or a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


class ClipBatches:
    """The clips of one side of a dataset, standardised, a batch at a time on the device.

    Features stay mapped from disk, so that trials side by side share them; with `is_resident` they are held
    on the device, and a batch is an index select.
    """

    def __init__(self, dataset: Dataset, side: str, device: torch.device, *, is_resident: bool) -> None:
        self.rows = dataset.rows(side)
        self.device = device
        self.labels = torch.from_numpy(dataset.labels[self.rows]).long().to(device)
        self.recording = dataset.recording[self.rows]
        self.mean = torch.from_numpy(dataset.mean).view(1, -1, 1, 1).to(device)
        self.deviation = torch.from_numpy(dataset.deviation).view(1, -1, 1, 1).to(device)
        self._mapped = dataset.features
        self._resident = torch.from_numpy(dataset.features[self.rows]).to(device) if is_resident else None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return clips float32 [batch, channels, bins, frames] and classes [batch] for positions `index`."""
        if self._resident is not None:
            clips = self._resident[index.to(self.device)]
        else:
            clips = torch.from_numpy(self._mapped[self.rows[index.numpy()]])
            if self.device.type == "cuda":
                clips = clips.pin_memory().to(self.device, non_blocking=True)
        return (clips.float() - self.mean) / self.deviation, self.labels[index.to(self.device)]

    def in_order(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield every clip once, in the order of the dataset."""
        for index in torch.arange(len(self)).split(batch_size):
            yield self.take(index)


def fits_on(device: torch.device, dataset: Dataset) -> bool:
    """Return whether the features of a dataset may live on `device`: a GPU with enough free memory."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return bool(dataset.features.nbytes <= RESIDENT_SHARE * free)


class Session:
    """One training run in progress: `step` trains one epoch and validates, until `finished`.

    Args:
        config: what to train; its seed draws weights, order and dropout.
        dataset: made by `prepare` under the same config.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        self.started = datetime.now(UTC)
        self.device = pick_device(config.runtime)
        torch.set_num_threads(config.runtime.threads)
        seed_everything(config.seed)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        is_resident = fits_on(self.device, dataset)
        self.train_clips = ClipBatches(dataset, "train", self.device, is_resident=is_resident)
        self.val_clips = ClipBatches(dataset, "val", self.device, is_resident=is_resident)
        for side, clips in (("train", self.train_clips), ("val", self.val_clips)):
            if not len(clips):
                raise DataError(f"the {side} side of the split holds no recordings")
        counts = torch.from_numpy(dataset.class_counts("train"))
        parts = build(config, dataset.input_shape, counts, self.device)
        self.model, self.loss, self.optimizer = parts.model, parts.loss, parts.optimizer
        self.n_params = count_parameters(self.model)
        self.order = torch.Generator().manual_seed(config.seed)
        self.strata = dataset.strata()
        # Tensors in channels_last are what bf16 convolutions are fast in, on the CPU and on the GPU.
        self.is_mixed = config.training.mixed_precision and has_fast_bf16(self.device)
        self.layout = torch.channels_last if self.is_mixed else torch.contiguous_format
        self.model = self.model.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.direction = metric_direction(config.training.monitor)
        self.epoch = 0
        self.best_epoch: int | None = None
        self.best_metrics: dict[str, float] = {}
        self.best_weights: dict[str, torch.Tensor] = {}
        self.f1_per_species: dict[str, float] = {}

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or patience has run out."""
        training = self.config.training
        waited = self.epoch - (self.best_epoch or 0)
        return self.epoch >= training.epochs or (training.patience > 0 and waited >= training.patience)

    def step(self) -> dict[str, float]:
        """Train one epoch, validate, and return the metrics of `records.METRICS` with ``epoch_s``.

        Raises TrialDiverged when a loss or a gradient is not finite; the best epoch so far is kept.
        """
        start = time.perf_counter()
        metrics = self._learn()
        self.epoch += 1
        probabilities, truth = self.predict("val")
        scores = score(probabilities, truth, self.strata)
        metrics |= {f"val/{name}": value for name, value in scores.items()}
        monitored = metrics[self.config.training.monitor]
        if is_better(monitored, self.best_metrics.get(self.config.training.monitor), self.direction):
            self.best_epoch = self.epoch
            self.best_metrics = dict(metrics)
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
            f1 = f1_per_class(probabilities.argmax(1), truth, len(self.dataset.species))
            self.f1_per_species = {self.dataset.species[c]: float(f1[c]) for c in np.unique(truth)}
        return {**metrics, "epoch_s": time.perf_counter() - start}

    @torch.inference_mode()
    def predict(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities [recordings, classes] of one side, windows averaged, and the true classes."""
        if side == "test":
            raise DataError("the test side is opened by final evaluation only, never by a training run")
        clips = {"train": self.train_clips, "val": self.val_clips}[side]
        self.model.eval()
        windows = [
            torch.softmax(self._logits(batch), dim=1).cpu().numpy()
            for batch, _ in clips.in_order(SCORING_BATCH)
        ]
        averaged, recordings = average_windows(np.concatenate(windows), clips.recording)
        label_of = dict(zip(clips.recording.tolist(), clips.labels.tolist(), strict=True))
        return averaged, np.array([label_of[r] for r in recordings.tolist()])

    def record(
        self, status: Status, *, error: str | None = None, traceback: str | None = None
    ) -> TrialRecord:
        """Return how the run ended, as it stands."""
        facts = self.dataset.facts
        if self.device.type == "cuda":
            peak_memory_mb = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        return TrialRecord(
            trial_id=self.config.trial_id,
            config_id=self.config.config_id,
            seed=self.config.seed,
            status=status,
            config=self.config.to_dict(),
            epochs=self.epoch,
            best_epoch=self.best_epoch,
            metrics=self.best_metrics,
            f1_per_species=self.f1_per_species,
            error=error,
            traceback=traceback,
            n_params=self.n_params,
            started=self.started.isoformat(timespec="seconds"),
            seconds=(datetime.now(UTC) - self.started).total_seconds(),
            peak_memory_mb=round(peak_memory_mb, 1),
            provenance={
                **provenance(),
                "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
                "precision": "bf16" if self.is_mixed else "fp32",
                "data_id": facts["data_id"],
                "split_id": facts["split_id"],
            },
        )

    def _learn(self) -> dict[str, float]:
        """Run one epoch of training and return its loss and accuracy."""
        config = self.config
        self.model.train()
        shuffled = torch.randperm(len(self.train_clips), generator=self.order)
        batches = shuffled.split(config.training.batch_size)
        losses, n_right = [], torch.zeros((), device=self.device)
        norms = []
        for n, index in enumerate(batches):
            lr = learning_rate(
                config.optim, self.epoch * len(batches) + n, len(batches), config.training.epochs
            )
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            clips, classes = self.train_clips.take(index)
            logits = self._logits(clips)
            loss = self.loss(logits, classes)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.grad_clip or math.inf)
            self.optimizer.step()
            losses.append(loss.detach() * len(index))
            norms.append(norm)
            n_right += (logits.detach().argmax(1) == classes).sum()
        # One look at the end of the epoch: looking at every step would make the GPU wait for the CPU.
        for what, values in (("loss", torch.stack(losses)), ("gradient", torch.stack(norms))):
            broken = torch.nonzero(~torch.isfinite(values))
            if len(broken):
                raise TrialDiverged(
                    f"the {what} was not finite in epoch {self.epoch + 1}, step {int(broken[0]) + 1} of "
                    f"{len(batches)}; the last good epoch is {self.epoch}. A lower optim.lr may help"
                )
        n = len(self.train_clips)
        return {"train/loss": float(torch.stack(losses).sum()) / n, "train/accuracy": float(n_right) / n}

    def _logits(self, clips: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [batch, classes]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_mixed):
            logits: torch.Tensor = self.model(clips.contiguous(memory_format=self.layout))
        return logits.float()


def train(
    config: TrainConfig,
    dataset: Dataset,
    *,
    on_epoch: Callable[[int, dict[str, float]], Any] | None = None,
) -> Session:
    """Train `config` to its end and return the session with its best weights and metrics.

    `on_epoch` is called with the number of the epoch, from 1, and its metrics.
    """
    session = Session(config, dataset)
    while not session.finished:
        metrics = session.step()
        if on_epoch:
            on_epoch(session.epoch, metrics)
    return session


def save_model(session: Session, folder: Path) -> None:
    """Write the best epoch's weights, the config, the species and the record of a session to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in session.best_weights.items()}
    save_file(weights, folder / "model.safetensors")
    write_json(folder / "record.json", session.record("completed").to_dict())
    write_json(
        folder / "model.json",
        {
            "config": session.config.to_dict(),
            "input_shape": session.dataset.input_shape,
            "mean": session.dataset.mean.tolist(),
            "deviation": session.dataset.deviation.tolist(),
            "species": session.dataset.species,
        },
    )
