"""One training run: a `Session` that learns an epoch at a time, and `train`, which runs it to the end.

The cluster runs the same `Session` that `train` does, so a trial replayed alone gives the same numbers: on
the CPU to the last digit, for equal `runtime.threads`. So does a session that was saved after any epoch and
loaded in another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import pickle
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from birdnet_core.build import build, count_parameters
from birdnet_core.config import RuntimeConfig, TrainConfig, cautions
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import ConfigError, DataError, TrialDiverged
from birdnet_core.inference.model_folder import Member, write_model
from birdnet_core.records.files import write_json
from birdnet_core.records.metrics import is_better, metric_direction
from birdnet_core.records.provenance import provenance
from birdnet_core.records.trial import Status, TrialRecord
from birdnet_core.training.batches import ClipBatches, Raw, epoch_order, fits_on
from birdnet_core.training.memory import forget_peak_rss, give_back_memory, is_out_of_memory, peak_rss
from birdnet_core.training.metrics import average_windows, f1_per_class, score
from birdnet_core.training.optim import Plateau, is_open_ended, lr_share

log = logging.getLogger(__name__)

STATE_FORMAT = 5
SCORING_BATCH = 128

# Of mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

Precision = Literal["bf16", "fp16", "fp32"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, up to 1 GiB, where its C library is glibc.

    Activations of megabytes otherwise go back to the system and come again, page by page, at every step of
    the CPU: 3 to 10 % of a training step of AudioCNN.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 2**30)
        mallopt(_M_TOP_PAD, 64 * 2**20)


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


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """Return what ``auto`` stands for on `device`: bf16, fp16 on GPUs without bf16, fp32 on other CPUs."""
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def layout_of(precision: Precision) -> torch.memory_format:
    """Return what convolutions are fast in: channels_last in half precision, on the CPU and the GPU."""
    return torch.contiguous_format if precision == "fp32" else torch.channels_last


def logits_of(model: torch.nn.Module, features: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return float32 logits [batch, classes] of `features` on the device of `model`."""
    with torch.autocast(features.device.type, _DTYPES[precision], enabled=precision != "fp32"):
        logits: torch.Tensor = model(features.contiguous(memory_format=layout_of(precision)))
    return logits.float()


class Session:
    """One training run in progress: `step` trains one epoch and validates, until `finished`.

    A run that learns from the validation split too (`training.train_on`) is not validated: it has no
    validation metrics, and its newest epoch is its best.

    Args:
        config: what to train; its seed draws weights, order, augmentation and dropout.
        dataset: made by `prepare` under the same config.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        self.started = datetime.now(UTC)
        self.seconds_before = 0.0
        for caution in cautions(config):
            log.warning(caution)
        self.device = pick_device(config.runtime)
        torch.set_num_threads(config.runtime.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        seed_everything(config.seed)
        # What the process took for trials before is not of this one.
        give_back_memory()
        self.peak_before: int | None = None
        self.knows_peak = forget_peak_rss() is not None or self.device.type == "cuda"
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        for split in ("train", "val"):
            if not len(dataset.rows(split)):
                raise DataError(f"the {split} split holds no recordings")
        self.strata = dataset.strata()
        self._check_monitors()
        counts = torch.from_numpy(dataset.class_counts(*config.training.train_splits))
        parts = build(config, dataset.input_shape, counts, self.device)
        self.model, self.loss, self.optimizer = parts.model, parts.loss, parts.optimizer
        self.spectrogram_augmentations = parts.augmentations["spectrogram"]
        self.mixtures = parts.augmentations["mixture"]
        self.n_params = count_parameters(self.model)
        self.train_clips, self.val_clips = self._clips(parts.augmentations["waveform"])
        self.order = torch.Generator().manual_seed(config.seed)
        # Augmentation draws on the device; another seed, so that it does not repeat the order's draws.
        self.augmenting = torch.Generator(self.device).manual_seed(config.seed + 2**31)
        self.precision = pick_precision(config.training.precision, self.device)
        self.model = self.model.to(memory_format=layout_of(self.precision))  # type: ignore[call-overload]
        self.scaler = self._new_scaler()
        self.ema = self._averaged(config.training.ema_decay) if config.training.ema_decay else None
        self.has_batch_norm = _learns_batch_statistics(self.model)
        self.micro_batch_size = config.training.micro_batch_size or config.training.batch_size
        self.n_out_of_memory = 0
        self.direction = metric_direction(config.training.monitor)
        self.plateau = Plateau(config.optim, self.direction)
        self.epoch = 0
        self.n_steps = 0
        self.best_epoch: int | None = None
        self.best_metrics: dict[str, float] = {}
        self.best_weights: dict[str, torch.Tensor] = {}
        self.f1_per_species: dict[str, float] = {}
        # The class told of each validation recording at the best epoch, in the order of `scored_rows`.
        self.predicted: list[int] = []
        # What `step` returned, epoch by epoch.
        self.history: list[dict[str, float]] = []
        # What patience waits for: the best value of `stop_on` so far and its epoch.
        self.stop_best: float | None = None
        self.stop_epoch = 0

    @property
    def finished(self) -> bool:
        """Whether the budget is used up, or patience has run out."""
        training = self.config.training
        if self.epoch >= training.most_epochs:
            return True
        waited = self.epoch - self.stop_epoch
        return training.is_validated and 0 < training.patience <= waited

    def step(self) -> dict[str, float]:
        """Train one epoch, validate, and return the metrics of `records.METRICS` with ``epoch_s``.

        Out of GPU memory, the epoch starts again with micro-batches of half the size, which add up to the
        same batch; micro-batches of one clip raise the error, see `memory.is_out_of_memory`. Under batch norm
        that is other training (`not_comparable`). Raises TrialDiverged when a loss, a gradient or a predicted
        probability is not finite; the best epoch so far is kept.
        """
        start = time.perf_counter()
        before = _copied(self._changing_state())
        while True:
            try:
                metrics = self._epoch()
                break
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.micro_batch_size == 1:
                    raise
            # Outside of the except block, whose traceback keeps the tensors of the failed step alive.
            self._halve_micro_batches(before)
        metrics["epoch_s"] = time.perf_counter() - start
        self.history.append(dict(metrics))
        if self.finished and self.best_epoch is None:
            raise TrialDiverged(
                f"{self.config.training.monitor} (training.monitor) was nan in each of the {self.epoch} "
                "epochs, so that none is the best and there are no weights to keep"
            )
        return metrics

    def _epoch(self) -> dict[str, float]:
        metrics = self._learn()
        if not self.config.training.is_validated:
            self.epoch += 1
            self._keep(metrics)
            return metrics
        probabilities, truth = self._predicted("val")
        self._check_predicted(probabilities)
        self.epoch += 1
        scores = score(probabilities, truth, self.strata)
        metrics |= {f"val/{name}": value for name, value in scores.items()}
        training = self.config.training
        self.plateau.after_epoch(metrics[training.monitor])
        stop_on = training.stop_on or training.monitor
        if is_better(metrics[stop_on], self.stop_best, metric_direction(stop_on)):
            self.stop_best, self.stop_epoch = metrics[stop_on], self.epoch
        if is_better(metrics[training.monitor], self.best_metrics.get(training.monitor), self.direction):
            self._keep(metrics)
            f1 = f1_per_class(probabilities.argmax(1), truth, len(self.dataset.species))
            self.f1_per_species = {self.dataset.species[c]: float(f1[c]) for c in np.unique(truth)}
            self.predicted = probabilities.argmax(1).tolist()
        return metrics

    def _keep(self, metrics: dict[str, float]) -> None:
        """Take the epoch that just ended for the run's result."""
        self.best_epoch = self.epoch
        self.best_metrics = dict(metrics)
        self.best_weights = _copied(self._scored_model().state_dict())

    def predict(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities [recordings, classes] of one split, windows averaged, and the true classes.

        By the weights of the best epoch so far, those that a model folder gets; before the first, by those
        that there are. Of single clips where these were split at random (`Dataset.scored_ids`).
        """
        with self._best_weights_in_use():
            return self._predicted(split)

    @contextlib.contextmanager
    def _best_weights_in_use(self) -> Iterator[None]:
        """Give the scored model the weights of the best epoch within the block, and its own back after it."""
        model = self._scored_model()
        now = _copied(model.state_dict())
        if self.best_weights:
            model.load_state_dict(self.best_weights)
        try:
            yield
        finally:
            model.load_state_dict(now)

    @torch.inference_mode()
    def _predicted(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return what `predict` does, by the weights of now."""
        if split == "test":
            raise DataError("the test split is opened by final evaluation only, never by a training run")
        clips = {"train": self.train_clips, "val": self.val_clips}[split]
        if clips is None:
            raise DataError(
                "the val split was learnt (training.train_on = 'train+val'): predictions there say nothing"
            )
        model = self._scored_model().eval()
        # A forward pass alone takes far less memory than training does; the bound counts after a halving.
        batch_size = min(SCORING_BATCH, 4 * self.micro_batch_size)
        windows = [
            torch.softmax(self._logits(model, features), dim=1).cpu().numpy()
            for features, _ in clips.in_order(batch_size)
        ]
        averaged, scored_ids = average_windows(np.concatenate(windows), clips.scored_ids)
        label_of = dict(zip(clips.scored_ids.tolist(), clips.labels.tolist(), strict=True))
        return averaged, np.array([label_of[scored_id] for scored_id in scored_ids.tolist()])

    def record(
        self, status: Status, *, error: str | None = None, traceback: str | None = None
    ) -> TrialRecord:
        """Return how the run ended, as it stands."""
        facts = self.dataset.facts
        peak = self._peak_memory()
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
            seconds=self._seconds(),
            peak_memory_mb=None if peak is None else round(peak / 2**20, 1),
            provenance={
                **provenance(),
                "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
                "precision": self.precision,
                "micro_batch_size": self.micro_batch_size,
                "n_out_of_memory": self.n_out_of_memory,
                "not_comparable": self.not_comparable,
                "data_id": facts["data_id"],
                "split_id": facts["split_id"],
            },
        )

    # ------------------------------------------------------------------------------- save and load

    def save(self, path: str | Path) -> None:
        """Write everything that the rest of the run depends on to `path`, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        state = {
            "format": STATE_FORMAT,
            "config": self.config.to_dict(),
            "data_id": self.dataset.facts["data_id"],
            "split_id": self.dataset.facts["split_id"],
            "device": self.device.type,
            "precision": self.precision,
            "peak_memory": self._peak_memory(),
            "started": self.started.isoformat(),
            "seconds": self._seconds(),
            "micro_batch_size": self.micro_batch_size,
            "n_out_of_memory": self.n_out_of_memory,
            "best_weights": self.best_weights,
            "history": self.history,
            **self._changing_state(),
        }
        try:
            torch.save(state, partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def load(
        cls,
        path: str | Path,
        dataset: Dataset,
        *,
        epochs: int | None = None,
        runtime: RuntimeConfig | None = None,
    ) -> Session:
        """Return the session that `save` wrote, to go on as if it had never stopped.

        With `epochs`, on a longer budget, as if it had been asked for from the start, which takes a schedule
        that does not depend on the budget (`optim.is_open_ended`). `runtime` is that of now, where it is not
        to be that of then. Raises DataError for a file that is no session, or one of other recordings or
        another split, and ConfigError where the device is of another kind, whose generators draw other
        numbers, ``auto`` stands for another precision here, or the schedule is not open-ended.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise DataError(f"cannot read the session {str(path)!r}: {error.strerror}") from None
        except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise DataError(f"{str(path)!r} is not a saved session, or is damaged: {error}") from None
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
            raise DataError(f"{str(path)!r} is not a saved session of this version of birdtune")
        for fact in ("data_id", "split_id"):
            if state[fact] != dataset.facts[fact]:
                raise DataError(
                    f"the session {str(path)!r} was trained on other recordings or another split: its {fact} "
                    f"is {state[fact]}, that of the dataset is {dataset.facts[fact]}"
                )
        config = TrainConfig.from_dict(state["config"])
        if epochs is not None:
            if not is_open_ended(config.optim):
                raise ConfigError(
                    f"the session {str(path)!r} cannot go on for {epochs} epochs instead of "
                    f"{config.training.epochs}: its schedule, {config.optim.schedule!r}, follows the budget"
                )
            config = config.override({"training.epochs": epochs})
        config = replace(config, runtime=runtime or config.runtime)
        device = pick_device(config.runtime)
        if device.type != state["device"]:
            raise ConfigError(
                f"the session {str(path)!r} was saved on {state['device']} and cannot go on on "
                f"{device.type}; start anew there"
            )
        precision = pick_precision(config.training.precision, device)
        if precision != state["precision"]:
            raise ConfigError(
                f"the session {str(path)!r} was trained in {state['precision']}, and training.precision = "
                f"{config.training.precision!r} is {precision} on this hardware; start anew here, or go on "
                "where it was saved"
            )
        session = cls(config, dataset)
        session.started = datetime.fromisoformat(state["started"])
        session.seconds_before = state["seconds"] - (datetime.now(UTC) - session.started).total_seconds()
        session.micro_batch_size = state["micro_batch_size"]
        session.n_out_of_memory = state["n_out_of_memory"]
        session.peak_before = state["peak_memory"]
        session.best_weights = state["best_weights"]
        session.history = state["history"]
        session._take_changing_state(state)
        return session

    def _changing_state(self) -> dict[str, Any]:
        """Return all that an epoch changes but `best_weights`, which it replaces last."""
        numpy_state: Any = np.random.get_state()
        python_version, python_words, python_next = random.getstate()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "plateau": self.plateau.state_dict(),
            "generators": {
                "order": self.order.get_state(),
                "augmenting": self.augmenting.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
                "python": [python_version, list(python_words), python_next],
            },
            "epoch": self.epoch,
            "n_steps": self.n_steps,
            "best_epoch": self.best_epoch,
            "best_metrics": dict(self.best_metrics),
            "f1_per_species": dict(self.f1_per_species),
            "predicted": list(self.predicted),
            "stop_best": self.stop_best,
            "stop_epoch": self.stop_epoch,
        }

    def _take_changing_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.plateau.load_state_dict(state["plateau"])
        generators = state["generators"]
        self.order.set_state(generators["order"])
        self.augmenting.set_state(generators["augmenting"])
        torch.set_rng_state(generators["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], self.device)
        name, words, *rest = generators["numpy"]
        np.random.set_state((name, np.array(words, dtype=np.uint32), *rest))
        version, words, following = generators["python"]
        random.setstate((version, tuple(words), following))
        for name in ("epoch", "n_steps", "best_epoch", "stop_best", "stop_epoch"):
            setattr(self, name, state[name])
        self.best_metrics = dict(state["best_metrics"])
        self.f1_per_species = dict(state["f1_per_species"])
        self.predicted = list(state["predicted"])

    def _halve_micro_batches(self, before: dict[str, Any]) -> None:
        """Go back to the state `before` the epoch, with half the clips a forward pass."""
        self.n_out_of_memory += 1
        self.micro_batch_size = (self.micro_batch_size + 1) // 2
        self.optimizer.zero_grad(set_to_none=True)
        give_back_memory()
        self.scaler = self._new_scaler()  # the old one may be in the middle of a step
        # Loading takes what it is given; a second halving needs `before` untouched.
        self._take_changing_state(_copied(before))
        log.warning(
            "out of GPU memory in epoch %d: trying again with micro-batches of %d clips, batches of %d",
            self.epoch + 1,
            self.micro_batch_size,
            self.config.training.batch_size,
        )

    def _new_scaler(self) -> torch.amp.GradScaler:
        """Return fp16's gradient scaler; at other precisions it hands everything through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def not_comparable(self) -> str | None:
        """Why the run is other training than its config says, and no sample of it; None where it is not.

        Batch norm takes its statistics from what a forward pass sees, so that micro-batches of another size
        than the config has are another regularisation. Without batch norm they add up to the same batch.
        """
        if not self.n_out_of_memory or not self.has_batch_norm:
            return None
        times = f"{self.n_out_of_memory} time" + ("s" if self.n_out_of_memory > 1 else "")
        return (
            f"the GPU ran out of memory {times}, and batch norm took its statistics from micro-batches of "
            f"{self.micro_batch_size} clips"
        )

    def _peak_memory(self) -> int | None:
        """Return the most bytes so far, torch's on a GPU, else the process's; None where not known."""
        if not self.knows_peak:
            return None
        is_gpu = self.device.type == "cuda"
        now = torch.cuda.max_memory_allocated(self.device) if is_gpu else peak_rss()
        return max(now, self.peak_before or 0)

    def _seconds(self) -> float:
        return self.seconds_before + (datetime.now(UTC) - self.started).total_seconds()

    # ------------------------------------------------------------------------------------- learning

    def _clips(self, waveform_augmentations: list[torch.nn.Module]) -> tuple[ClipBatches, ClipBatches | None]:
        """Return the clips to learn and those to validate on, from where config and device want them."""
        dataset, wanted = self.dataset, self.config.runtime.features
        if wanted == "stored" and dataset.features is None:
            raise DataError("runtime.features = 'stored', but the dataset was prepared without features")
        is_computed = wanted == "computed" or dataset.features is None
        is_train_computed = is_computed or bool(waveform_augmentations)
        n_bytes = 0
        if dataset.features is not None and not is_computed:
            n_bytes += dataset.features.values[:1].nbytes * len(dataset.in_store)
        if is_train_computed:
            n_bytes += dataset.clips.samples[:1].nbytes * len(dataset.in_store)
        is_resident = fits_on(self.device, n_bytes)
        train = ClipBatches(
            self.config,
            dataset,
            self.config.training.train_splits,
            self.device,
            is_computed=is_train_computed,
            is_resident=is_resident,
            waveform_augmentations=waveform_augmentations,
        )
        if not self.config.training.is_validated:
            return train, None
        val = ClipBatches(
            self.config, dataset, ("val",), self.device, is_computed=is_computed, is_resident=is_resident
        )
        return train, val

    def _averaged(self, decay: float) -> AveragedModel:
        """Return the moving average of the weights, with a decay that grows to `decay` over the first steps.

        min(decay, (1 + n) / (10 + n)) at step n, or a short run would never leave its random start behind.
        """

        def update(average: Any, current: Any, _: Any) -> None:
            if not average[0].is_floating_point():  # counters of batch norm
                torch._foreach_copy_(average, current)
                return
            share = min(decay, (1 + self.n_steps) / (10 + self.n_steps))
            torch._foreach_lerp_(average, current, 1 - share)

        return AveragedModel(self.model, multi_avg_fn=update, use_buffers=True)

    def _scored_model(self) -> torch.nn.Module:
        return self.ema.module if self.ema else self.model

    def _learn(self) -> dict[str, float]:
        """Run one epoch of training and return its loss and accuracy."""
        training = self.config.training
        self.model.train()
        order = epoch_order(self.train_clips.labels.cpu(), training.sampling, self.order)
        batches = list(order.split(training.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            # Batch norm has no statistics of a single clip whose maps are 1 x 1.
            batches[-2:] = [torch.cat(batches[-2:])]
        losses, norms, n_right = [], [], torch.zeros((), device=self.device)
        for n, raw in enumerate(self.train_clips.batches(batches)):
            share = self.plateau.share * lr_share(
                self.config.optim, self.epoch * len(batches) + n, len(batches), training.epochs
            )
            for group in self.optimizer.param_groups:
                group["lr"] = share * group["peak_lr"]
            loss, right, norm = self._learn_batch(raw)
            losses.append(loss * len(raw.classes))
            norms.append(norm)
            n_right += right
        self._check_finite(torch.stack(losses), torch.stack(norms))
        return {
            "train/loss": float(torch.stack(losses).sum()) / len(order),
            "train/accuracy": float(n_right) / len(order),
        }

    def _learn_batch(self, raw: Raw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Make one step of the optimizer; return the loss, how many were right, and the gradient's norm."""
        features, targets = self.train_clips.features(raw, self.augmenting)
        for augmentation in self.spectrogram_augmentations:
            features = augmentation(features, self.augmenting)
        if self.mixtures:
            targets = torch.nn.functional.one_hot(targets, len(self.dataset.species)).float()
            for mixture in self.mixtures:
                features, targets = mixture(features, targets, self.augmenting)
        self.optimizer.zero_grad(set_to_none=True)
        whole = self.loss.normaliser(targets)  # type: ignore[operator]
        total = right = torch.zeros((), device=self.device)
        # Parts of nearly equal size, so that no last one is left with a single clip.
        n_parts = math.ceil(len(features) / self.micro_batch_size)
        for some, wanted in zip(features.tensor_split(n_parts), targets.tensor_split(n_parts), strict=True):
            logits = self._logits(self.model, some)
            # By its share of what the loss's mean divides by, the micro-batches add up to the batch.
            share = self.loss.normaliser(wanted) / whole  # type: ignore[operator]
            loss = self.loss(logits, wanted) * share
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
            classes = wanted.argmax(1) if wanted.ndim == 2 else wanted
            right = right + (logits.detach().argmax(1) == classes).sum()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.optim.grad_clip or math.inf
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.n_steps += 1
        if self.ema:
            self.ema.update_parameters(self.model)
        return total, right, norm

    def _check_monitors(self) -> None:
        """Raise ConfigError where what decides would be nan in every epoch."""
        training = self.config.training
        if not training.is_validated:
            return
        present = self.dataset.labels[self.dataset.rows("val")]
        for name, metric in (("monitor", training.monitor), ("stop_on", training.stop_on)):
            stratum = (metric or "").removeprefix("val/f1_")
            if stratum in self.strata and not np.isin(self.strata[stratum], present).any():
                raise ConfigError(
                    f"training.{name} = {metric!r} is nan in every epoch: no species of the {stratum} "
                    "stratum has a recording in the validation split; monitor val/f1_macro or val/loss"
                )

    def _check_predicted(self, probabilities: np.ndarray) -> None:
        """Raise TrialDiverged for probabilities of the validation split that are not finite."""
        n_broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
        if n_broken:
            raise TrialDiverged(
                f"the probabilities of {n_broken} of {len(probabilities)} validation recordings were not "
                f"finite after epoch {self.epoch + 1}; the last good epoch is {self.epoch}. A lower optim.lr "
                f"may help, or another training.precision than {self.precision}"
            )

    def _check_finite(self, losses: torch.Tensor, norms: torch.Tensor) -> None:
        """Raise TrialDiverged for the first step of the epoch with a loss or gradient that is not finite.

        One look at the end of the epoch: looking at every step would make the GPU wait for the CPU. In fp16
        a gradient may overflow now and then: the scaler leaves out that step and lowers its scale, which
        only a run that has diverged brings below 1.
        """
        broken_norms = ~torch.isfinite(norms)
        if self.precision == "fp16" and self.scaler.get_scale() >= 1:
            broken_norms = torch.zeros_like(broken_norms)
        for what, is_broken in (("loss", ~torch.isfinite(losses)), ("gradient", broken_norms)):
            broken = torch.nonzero(is_broken)
            if len(broken):
                raise TrialDiverged(
                    f"the {what} was not finite in epoch {self.epoch + 1}, step {int(broken[0]) + 1} of "
                    f"{len(losses)}; the last good epoch is {self.epoch}. A lower optim.lr may help"
                )

    def _logits(self, model: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
        return logits_of(model, features, self.precision)


def _learns_batch_statistics(model: torch.nn.Module) -> bool:
    """Return whether a batch norm of `model` is in training mode while it trains; a frozen one is not."""
    norms = [m for m in model.train().modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    return any(norm.training or not norm.track_running_stats for norm in norms)


def _copied(state: Any) -> Any:
    """Return a copy of nested values with every tensor on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return state


def train(
    config: TrainConfig,
    dataset: Dataset,
    *,
    on_epoch: Callable[[int, dict[str, float]], Any] | None = None,
    checkpoint: Path | None = None,
) -> Session:
    """Train `config` to its end and return the session, which predicts by the weights of its best epoch.

    `on_epoch` is called with the number of the epoch, from 1, and its metrics. The session is saved to
    `checkpoint` after every epoch, and goes on from there if an earlier call was interrupted, under the
    `runtime` of this call. Raises DataError where `checkpoint` holds the session of another config or of
    other data.
    """
    if checkpoint and checkpoint.exists():
        session = Session.load(checkpoint, dataset, runtime=config.runtime)
        if session.config.trial_id != config.trial_id:
            raise DataError(
                f"{str(checkpoint)!r} is the interrupted training of another config or seed "
                f"({session.config.trial_id}, asked for {config.trial_id}); finish that one, delete the "
                "file, or choose another folder"
            )
    else:
        session = Session(config, dataset)
    while not session.finished:
        metrics = session.step()
        if checkpoint:
            session.save(checkpoint)
        if on_epoch:
            on_epoch(session.epoch, metrics)
    return session


def save_model(session: Session, folder: Path) -> None:
    """Write the best epoch's weights as a model folder, and the record of the session beside them."""
    record = session.record("completed")
    dataset = session.dataset
    member = Member(session.best_weights, record.seed, record.best_epoch or record.epochs, record.trial_id)
    write_model(
        folder,
        config=session.config,
        species=dataset.species,
        input_shape=dataset.input_shape,
        mean=dataset.mean.tolist(),
        std=dataset.std.tolist(),
        members=[member],
        provenance={**record.provenance, "trials": [record.trial_id], "seeds": [record.seed]},
    )
    write_json(folder / "record.json", record.to_dict())
