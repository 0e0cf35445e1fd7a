"""One training run in progress: a `Session`, which trains and validates an epoch at a time.

A trial of a sweep runs the same `Session` as `run.train`, so that a trial replayed alone gives the same
numbers: on the CPU to the last digit, for equal `runtime.threads`. So does a session that was saved after any
epoch and loaded in another process.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from birdnet_core.build import build, count_parameters, label_classifier, starts_from
from birdnet_core.config import RuntimeConfig, TrainConfig, cautions
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import ConfigError, DataError, TrialDiverged
from birdnet_core.records.metrics import is_better, metric_direction
from birdnet_core.records.predictions import Predictions
from birdnet_core.records.provenance import provenance
from birdnet_core.records.trial import Status, TrialRecord
from birdnet_core.training.batches import SCORING_BATCH, Raw, epoch_order, train_and_val_clips
from birdnet_core.training.checkpoint import (
    Checkpoint,
    Generators,
    Progress,
    Stateful,
    copied,
    n_bytes,
    restore,
    states,
)
from birdnet_core.training.device import (
    choose_kernels,
    keep_freed_memory,
    layout_of,
    logits_of,
    pick_device,
    pick_precision,
    seed_everything,
)
from birdnet_core.training.graph import WARM_UP, CapturedStep, why_eager
from birdnet_core.training.memory import PeakMemory, give_back_memory, is_out_of_memory, may_run_out
from birdnet_core.training.metrics import average_windows, f1_per_class, likeliest, score
from birdnet_core.training.optim import MovingAverage, Plateau, is_open_ended, lr_share, set_rates

log = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_ON_GPU = 2**27
"""Up to so many bytes of state are copied on the GPU itself at every epoch, and more to the CPU."""


class Session:
    """One training run in progress: `step` trains one epoch and validates, until `finished`.

    A run that trains on the validation split too (`training.train_on`) is not validated: it has no validation
    metrics, and its newest epoch is its best. `progress` holds the epochs so far and the best one.

    Args:
        config: what to train; its seed draws weights, order, augmentation and dropout.
        dataset: made by `prepare` under the same config.

    Raises DataError for an empty training or validation split, and ConfigError for a GPU that is not there,
    for options that a part refuses, and for a monitored metric that is nan in every epoch.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        self.started = datetime.now(UTC)
        self.seconds_before = 0.0
        for caution in cautions(config):
            log.warning(caution)
        self.device = pick_device(config.runtime)
        self.precision = pick_precision(config.training.precision, self.device)
        choose_kernels(self.device, self.precision, deterministic=config.runtime.deterministic)
        torch.set_num_threads(config.runtime.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        seed_everything(config.seed)
        # Memory that the process used for earlier trials does not count.
        give_back_memory()
        self.peak_memory = PeakMemory(self.device)
        for split in ("train", "val"):
            if not len(dataset.rows(split)):
                raise DataError(f"the {split} split holds no recordings")
        self.strata = dataset.strata()
        self._check_monitors()
        training = config.training
        counts = torch.from_numpy(dataset.class_counts(*training.train_splits))
        parts = build(config, dataset.input_shape, counts, self.device)
        self.loss, self.optimizer, self.augmentations = parts.loss, parts.optimizer, parts.augmentations
        self.n_params = count_parameters(parts.model)
        self.has_batch_statistics = uses_batch_statistics(parts.model)
        self.train_clips, self.val_clips = train_and_val_clips(
            config, dataset, self.device, self.augmentations["waveform"]
        )
        self._start(parts.model)
        self.model = parts.model.to(memory_format=layout_of(self.precision))  # type: ignore[call-overload]
        self.scaler = self._new_scaler()
        self.ema = MovingAverage(self.model, training.ema_decay) if training.ema_decay else None
        self.plateau = Plateau(config.optim, metric_direction(training.monitor))
        self.generators = Generators(
            self.device,
            order=torch.Generator().manual_seed(config.seed),
            # On the device; another seed, so that it does not repeat the order's draws.
            augmenting=torch.Generator(self.device).manual_seed(config.seed + 2**31),
        )
        self.progress = Progress(training.micro_batch_size or training.batch_size)
        parts_of_step = [self.model, self.loss, *sum(self.augmentations.values(), [])]
        feature = self.train_clips.feature
        self.why_eager = why_eager(
            self.device, config.runtime, self.precision, parts_of_step + ([feature] if feature else [])
        )
        self.captured = self._new_captured_step()

    def _start(self, model: torch.nn.Module) -> None:
        """Give a model the weights that it starts from, where these are not drawn."""
        match starts_from(model):
            case "class means":
                model.start_from(self.train_clips.class_means(len(self.dataset.species)))  # type: ignore[operator]
            case "labels":
                weights, biases = label_classifier(self.config, self.dataset.species)
                mean, std = torch.from_numpy(self.dataset.mean), torch.from_numpy(self.dataset.std)
                # The head's inputs are (embedding - mean) / std.
                model.start_from(weights * std, biases + weights @ mean)  # type: ignore[operator]

    @property
    def finished(self) -> bool:
        """Whether the budget is used up, or patience has run out."""
        training, progress = self.config.training, self.progress
        if progress.epoch >= training.most_epochs:
            return True
        waited = progress.epoch - progress.stop_epoch
        return training.is_validated and 0 < training.patience <= waited

    @property
    def scored_model(self) -> torch.nn.Module:
        """The network that is validated and kept: the moving average of the weights where there is one."""
        return self.ema.module if self.ema else self.model

    @property
    def scoring_batch_size(self) -> int:
        """Clips a forward pass in validation.

        It takes far less memory than training does; the bound counts after the GPU ran out of memory.
        """
        return min(SCORING_BATCH, 4 * self.progress.micro_batch_size)

    def step(self) -> dict[str, float]:
        """Train one epoch, validate, and return the metrics of `records.METRICS` with ``epoch_s``.

        Out of GPU memory, the epoch starts again with smaller micro-batches (`until_it_fits`). Raises
        TrialDiverged when a loss, a gradient or a predicted probability is not finite; the best epoch so far
        is kept.
        """
        start = time.perf_counter()
        metrics = self.until_it_fits(self._epoch)
        metrics["epoch_s"] = time.perf_counter() - start
        progress = self.progress
        progress.history.append(dict(metrics))
        if self.finished and progress.best_epoch is None:
            raise TrialDiverged(
                f"{self.config.training.monitor} (training.monitor) was nan in each of the {progress.epoch} "
                "epochs, so that none is the best and there are no weights to keep"
            )
        return metrics

    def until_it_fits(self, work: Callable[[], T]) -> T:
        """Return `work()`, repeated with micro-batches of half the size while the GPU runs out of memory.

        Each repeat starts from the state before the first. Smaller micro-batches add up to the same batch;
        under batch norm they are other training (`not_comparable`). Micro-batches of one clip raise the
        error, see `memory.is_out_of_memory`.
        """
        before = None
        if may_run_out(self.device):
            state = states(self.parts)
            before = copied(state, to_cpu=n_bytes(state) > KEPT_ON_GPU)
        while True:
            try:
                return work()
            except RuntimeError as error:
                if before is None or not is_out_of_memory(error) or self.progress.micro_batch_size == 1:
                    raise
            # Outside of the except block, whose traceback keeps the tensors of the failed step alive.
            self.progress.n_out_of_memory += 1
            self.progress.micro_batch_size = (self.progress.micro_batch_size + 1) // 2
            self.optimizer.zero_grad(set_to_none=True)
            self.captured = None  # its graph is of the old size, and of tensors that are replaced
            give_back_memory()
            self.scaler = self._new_scaler()  # the old one may be in the middle of a step
            restore(self.parts, copied(before, to_cpu=False))  # a copy, for the next time
            self.captured = self._new_captured_step()
            log.warning(
                "out of GPU memory in epoch %d: repeating it with micro-batches of %d clips, batches of %d",
                self.progress.epoch + 1,
                self.progress.micro_batch_size,
                self.config.training.batch_size,
            )

    def _epoch(self) -> dict[str, float]:
        progress, training = self.progress, self.config.training
        metrics = self.train_epoch()
        if not training.is_validated:
            progress.epoch += 1
            self._keep(metrics)
            return metrics
        probabilities, truth = self._predicted("val")
        self._check_predicted(probabilities)
        progress.epoch += 1
        predicted = probabilities.argmax(1)
        row = torch.from_numpy(predicted[None].astype(np.uint16))
        progress.classes = torch.cat([progress.classes, row]) if len(progress.classes) else row
        scores = score(probabilities, truth, self.strata)
        metrics |= {f"val/{name}": value for name, value in scores.items()}
        monitored, stop_on = training.monitor, training.stop_on or training.monitor
        self.plateau.after_epoch(metrics[monitored])
        if is_better(metrics[stop_on], progress.stop_best, metric_direction(stop_on)):
            progress.stop_best, progress.stop_epoch = metrics[stop_on], progress.epoch
        if is_better(metrics[monitored], progress.best_metrics.get(monitored), metric_direction(monitored)):
            self._keep(metrics)
            species = self.dataset.species
            f1 = f1_per_class(predicted, truth, len(species))
            progress.f1_per_species = {species[c]: float(f1[c]) for c in np.unique(truth)}
            progress.top, progress.probability = map(torch.from_numpy, likeliest(probabilities, predicted))
        return metrics

    def _keep(self, metrics: dict[str, float]) -> None:
        """Make the epoch that just ended the best one."""
        self.progress.best_epoch = self.progress.epoch
        self.progress.best_metrics = dict(metrics)
        self.progress.best_weights = copied(self.scored_model.state_dict())

    @property
    def predictions(self) -> Predictions | None:
        """The predictions of the validation recordings so far; None before an epoch was validated."""
        progress = self.progress
        if progress.best_epoch is None or not len(progress.classes):
            return None
        return Predictions(progress.classes.numpy(), progress.top.numpy(), progress.probability.numpy())

    @torch.inference_mode()
    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """Return probabilities [batch, classes] of `features`, on the device, by the newest weights."""
        return torch.softmax(self._logits(self.scored_model.eval(), features), dim=1)

    def predict(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities [recordings, classes] of ``train`` or ``val``, and the true classes.

        The windows of a recording are averaged; single clips are predicted where these were split at random
        (`Dataset.scored_ids`). The weights are those of the best epoch so far, which a model folder gets;
        before the first epoch the present ones. Raises DataError for the test split, and for a validation
        split that was trained on.
        """
        with self._best_weights_in_use():
            return self._predicted(split)

    @contextlib.contextmanager
    def _best_weights_in_use(self) -> Iterator[None]:
        """Give the scored model the weights of the best epoch within the block, and its own back after it."""
        now = copied(self.scored_model.state_dict())
        if self.progress.best_weights:
            self.scored_model.load_state_dict(self.progress.best_weights)
        try:
            yield
        finally:
            self.scored_model.load_state_dict(now)

    @torch.inference_mode()
    def _predicted(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the same as `predict`, by the newest weights."""
        if split == "test":
            raise DataError("the test split is opened by final evaluation only, never by a training run")
        clips = {"train": self.train_clips, "val": self.val_clips}[split]
        if clips is None:
            raise DataError(
                "the val split was trained on (training.train_on = 'train+val'): its predictions say nothing "
                "of new recordings"
            )
        is_gpu = self.device.type == "cuda"
        windows = torch.empty(len(clips), len(self.dataset.species), pin_memory=is_gpu)
        n = 0
        for features, _ in clips.in_order(self.scoring_batch_size):
            probabilities = self.probabilities(features)
            windows[n : n + len(features)].copy_(probabilities, non_blocking=True)
            n += len(features)
        if is_gpu:
            torch.cuda.synchronize(self.device)
        averaged, scored_ids = average_windows(windows.numpy(), clips.scored_ids)
        label_of = dict(zip(clips.scored_ids.tolist(), clips.labels.tolist(), strict=True))
        return averaged, np.array([label_of[scored_id] for scored_id in scored_ids.tolist()])

    def record(
        self, status: Status, *, error: str | None = None, traceback: str | None = None
    ) -> TrialRecord:
        """Return the record of the run so far, with the `status` that it ended with."""
        facts, progress = self.dataset.facts, self.progress
        peak = self.peak_memory.bytes()
        return TrialRecord(
            trial_id=self.config.trial_id,
            config_id=self.config.config_id,
            repeat=self.config.repeat,
            seed=self.config.seed,
            status=status,
            config=self.config.to_dict(),
            epochs=progress.epoch,
            best_epoch=progress.best_epoch,
            metrics=progress.best_metrics,
            f1_per_species=progress.f1_per_species,
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
                "training_step": self.training_step,
                "micro_batch_size": progress.micro_batch_size,
                "n_out_of_memory": progress.n_out_of_memory,
                "not_comparable": self.not_comparable,
                "data_id": facts["data_id"],
                "split_id": facts["split_id"],
            },
        )

    # ------------------------------------------------------------------------------- save and load

    @property
    def parts(self) -> dict[str, Stateful]:
        """Everything that the batches of an epoch change, by its name in a checkpoint."""
        parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "plateau": self.plateau,
            "generators": self.generators,
        }
        return parts | ({"ema": self.ema} if self.ema else {})

    def save(self, path: str | Path) -> None:
        """Write everything that the rest of the run depends on to `path`, whole or not at all."""
        Checkpoint(
            config=self.config.to_dict(),
            data_id=self.dataset.facts["data_id"],
            split_id=self.dataset.facts["split_id"],
            device=self.device.type,
            precision=self.precision,
            started=self.started.isoformat(),
            seconds=self._seconds(),
            peak_memory=self.peak_memory.bytes(),
            progress=vars(self.progress),
            parts=states(self.parts),
        ).write(Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        dataset: Dataset,
        *,
        epochs: int | None = None,
        runtime: RuntimeConfig | None = None,
    ) -> Session:
        """Return the session that `save` wrote; it continues as if it had never stopped.

        `epochs` is a longer budget, with the same result as if the run had it from the start; its schedule
        must not depend on the budget (`optim.is_open_ended`). `runtime` replaces that of the saved config.
        Raises DataError for a file that is not a session, or of other recordings or another split, and
        ConfigError where the device is of another kind, whose generators draw other numbers, where ``auto``
        is another precision on this hardware, or where the schedule is not open-ended.
        """
        saved = Checkpoint.read(Path(path))
        for fact in ("data_id", "split_id"):
            if getattr(saved, fact) != dataset.facts[fact]:
                raise DataError(
                    f"the session {str(path)!r} was trained on other recordings or another split: its {fact} "
                    f"is {getattr(saved, fact)}, that of the dataset is {dataset.facts[fact]}"
                )
        config = TrainConfig.from_dict(saved.config)
        if epochs is not None:
            if not is_open_ended(config.optim):
                raise ConfigError(
                    f"the session {str(path)!r} cannot continue for {epochs} epochs instead of "
                    f"{config.training.epochs}: its schedule, {config.optim.schedule!r}, follows the budget"
                )
            config = config.override({"training.epochs": epochs})
        config = replace(config, runtime=runtime or config.runtime)
        device = pick_device(config.runtime)
        if device.type != saved.device:
            raise ConfigError(
                f"the session {str(path)!r} was saved on {saved.device} and cannot continue on "
                f"{device.type}; start anew there"
            )
        precision = pick_precision(config.training.precision, device)
        if precision != saved.precision:
            raise ConfigError(
                f"the session {str(path)!r} was trained in {saved.precision}, and training.precision = "
                f"{config.training.precision!r} is {precision} on this hardware; start anew here, or "
                "continue where it was saved"
            )
        session = cls(config, dataset)
        session.started = datetime.fromisoformat(saved.started)
        session.seconds_before = saved.seconds - (datetime.now(UTC) - session.started).total_seconds()
        session.peak_memory.before = saved.peak_memory or 0
        session.progress = Progress(**saved.progress)
        restore(session.parts, saved.parts)
        session.captured = session._new_captured_step()
        return session

    @property
    def training_step(self) -> str:
        """How the steps of whole batches are launched: ``captured``, or ``eager: `` and why."""
        if self.captured is None:
            return f"eager: {self.why_eager}"
        if self.captured.replay is not None:
            return "captured"
        return f"eager: {self.captured.why_eager or f'not more than {WARM_UP} whole batches yet'}"

    def _new_captured_step(self) -> CapturedStep | None:
        if self.why_eager:
            return None
        return CapturedStep(self.train_batch, [self.generators.own["augmenting"]])

    def _new_scaler(self) -> torch.amp.GradScaler:
        """Return fp16's gradient scaler; at other precisions it does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def not_comparable(self) -> str | None:
        """The reason why the run is not a sample of its config; None where it is one.

        Batch norm takes its statistics from one forward pass, so that micro-batches of another size than the
        config has are another regularisation. Without batch norm they add up to the same batch.
        """
        n, size = self.progress.n_out_of_memory, self.progress.micro_batch_size
        if not n or not self.has_batch_statistics:
            return None
        times = f"{n} time" + ("s" if n > 1 else "")
        return (
            f"the GPU ran out of memory {times}, and batch norm took its statistics from micro-batches of "
            f"{size} clips"
        )

    def _seconds(self) -> float:
        return self.seconds_before + (datetime.now(UTC) - self.started).total_seconds()

    # ------------------------------------------------------------------------------------- training

    def train_epoch(self) -> dict[str, float]:
        """Train one epoch, without validation, and return ``train/loss`` and ``train/accuracy``."""
        training = self.config.training
        self.model.train()
        order = epoch_order(self.train_clips.labels, training.sampling, self.generators.own["order"])
        batches = list(self.train_clips.placed(order).split(training.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            # Batch norm has no statistics of a single clip whose maps are 1 x 1.
            batches[-2:] = [torch.cat(batches[-2:])]
        steps = []
        for n, raw in enumerate(self.train_clips.batches(batches)):
            share = self.plateau.share * lr_share(
                self.config.optim, self.progress.epoch * len(batches) + n, len(batches), training.epochs
            )
            set_rates(self.optimizer, share)
            steps.append(self.train_step(raw))
        # One look at the end of the epoch: looking at every step would make the GPU wait for the CPU.
        losses, n_right, norms = torch.stack(steps).cpu().unbind(1)
        self._check_finite(losses, norms)
        n_clips = torch.tensor([len(batch) for batch in batches])
        return {
            "train/loss": float((losses * n_clips).sum()) / len(order),
            "train/accuracy": float(n_right.sum()) / len(order),
        }

    def train_step(self, raw: Raw) -> torch.Tensor:
        """Make one step of the optimizer as `train_batch`, captured in a CUDA graph where that can be."""
        if self.captured and len(raw.classes) == self.config.training.batch_size:
            return self.captured(raw)
        return self.train_batch(raw)

    def train_batch(self, raw: Raw) -> torch.Tensor:
        """Make one step of the optimizer; return the loss, the number of clips right, the gradient's norm.

        Float32 [3] on the device. What it changes between steps lies in tensors, see `graph.CapturedStep`.
        """
        augmenting = self.generators.own["augmenting"]
        features, targets = self.train_clips.features(raw, augmenting)
        for augmentation in self.augmentations["features"]:
            features = augmentation(features, augmenting)
        targets = torch.nn.functional.one_hot(targets, len(self.dataset.species)).float()
        for mixture in self.augmentations["mixture"]:
            features, targets = mixture(features, targets, augmenting)
        self.optimizer.zero_grad(set_to_none=True)
        total = right = torch.zeros((), device=self.device)
        # Parts of nearly equal size, so that no last one is left with a single clip.
        n_parts = math.ceil(len(features) / self.progress.micro_batch_size)
        whole = self.loss.normaliser(targets) if n_parts > 1 else None  # type: ignore[operator]
        for some, wanted in zip(features.tensor_split(n_parts), targets.tensor_split(n_parts), strict=True):
            logits = self._logits(self.model, some)
            # Weighted by their shares of the batch's normaliser, the micro-batches add up to the batch.
            loss = self.loss(logits, wanted)
            if n_parts > 1:
                loss = loss * (self.loss.normaliser(wanted) / whole)  # type: ignore[operator]
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
            right = right + (logits.detach().argmax(1) == wanted.argmax(1)).sum()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.optim.grad_clip or math.inf
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model)
        return torch.stack([total, right.float(), norm])

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
        n_broken, epoch = int((~np.isfinite(probabilities)).any(axis=1).sum()), self.progress.epoch
        if n_broken:
            raise TrialDiverged(
                f"the probabilities of {n_broken} of {len(probabilities)} validation recordings were not "
                f"finite after epoch {epoch + 1}; the last good epoch is {epoch}. A lower optim.lr "
                f"may help, or another training.precision than {self.precision}"
            )

    def _check_finite(self, losses: torch.Tensor, norms: torch.Tensor) -> None:
        """Raise TrialDiverged for the first step of the epoch with a loss or gradient that is not finite.

        In fp16 a gradient may overflow now and then: the scaler leaves out that step and lowers its scale,
        which only a run that has diverged brings below 1.
        """
        epoch, broken_norms = self.progress.epoch, ~torch.isfinite(norms)
        if self.precision == "fp16" and self.scaler.get_scale() >= 1:
            broken_norms = torch.zeros_like(broken_norms)
        for what, is_broken in (("loss", ~torch.isfinite(losses)), ("gradient", broken_norms)):
            broken = torch.nonzero(is_broken)
            if len(broken):
                raise TrialDiverged(
                    f"the {what} was not finite in epoch {epoch + 1}, step {int(broken[0]) + 1} of "
                    f"{len(losses)}; the last good epoch is {epoch}. A lower optim.lr may help"
                )

    def _logits(self, model: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
        return logits_of(model, features, self.precision)


def uses_batch_statistics(model: torch.nn.Module) -> bool:
    """Return whether a batch norm of `model` is in training mode while it trains; a frozen one is not."""
    norms = [m for m in model.train().modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    return any(norm.training or not norm.track_running_stats for norm in norms)
